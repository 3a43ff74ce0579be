"""What a run of the demo must show before its trace may be called golden.

(a) in float32 without quantisation every tap is the specification's, the whole model in float64
    under the run's decisions; (b) in bf16 and fp8 every bf16 tap is, op by op, the specification's
    bit for bit, but for a few values; (c) the absorbed form of decoding gives the float32 taps of
    one pass; (d) every parameter is the checkpoint's, bit for bit (model.fill).
"""

from __future__ import annotations

import dataclasses

import torch
from real import GoldenError
from synthetic import Case, make_batch
from torch import Tensor

from demo.model import Mode
from demo.rules import Rules

DECISIONS = ("topk", "router.experts")


@dataclasses.dataclass(frozen=True)
class Found:
    """The worst tap of a check: its name and how far it is off."""

    tap: str
    value: float


def whole_model(case: Case, mode: Mode, taps: dict[str, Tensor], expanded: int) -> Found:
    """(a): the largest relative error of a tap."""
    expected = Rules(case, mode, True, expanded).evaluate(taps)
    return _worst(relative(case, expected, taps))


def op_by_op(case: Case, mode: Mode, taps: dict[str, Tensor], expanded: int) -> tuple[Found, Found]:
    """(b): the largest share of other bits in a bf16 tap; the largest error of a float32 tap."""
    expected = Rules(case, mode, False, expanded).evaluate(taps)
    low = [n for n in expected if taps[n].dtype == torch.bfloat16]
    bits = {name: other_bits(case, name, expected[name], taps) for name in low}
    wide = {name: value for name, value in expected.items() if name not in low}
    return _worst(bits), _worst(relative(case, wide, taps))


def same_function(case: Case, one: dict[str, Tensor], other: dict[str, Tensor]) -> Found:
    """(c): the largest relative error between two runs, where they decided alike."""
    alike = {n: v for n, v in other.items() if not n.endswith(DECISIONS) and n != "loss.lm"}
    return _worst(relative(case, alike, one))


def relative(case: Case, expected: dict[str, Tensor], taps: dict[str, Tensor]) -> dict[str, float]:
    """norm of the difference / norm, over what is judged."""
    out = {}
    for name, value in expected.items():
        judged = where_judged(case, name, taps)
        a, b = value.double()[judged], taps[name].double()[judged]
        if not torch.equal(a.isneginf(), b.isneginf()):
            out[name] = float("inf")
            continue
        a, b = (x.masked_fill(x.isneginf(), 0) for x in (a, b))
        out[name] = float((a - b).norm() / a.norm())
    return out


def other_bits(case: Case, name: str, value: Tensor, taps: dict[str, Tensor]) -> float:
    """The share of values that are not the same bits, two of them free: a tap may be small."""
    judged = where_judged(case, name, taps)
    other = value.to(torch.bfloat16)[judged] != taps[name][judged]
    return max(int(other.sum()) - 2, 0) / other.numel()


def where_judged(case: Case, name: str, taps: dict[str, Tensor]) -> Tensor:
    """A mask over a tap: no padded query, and of attention logits the attended keys alone."""
    mask = torch.from_numpy(make_batch(case)["attention_mask"]).bool()
    shape, over_heads = taps[name].shape, name.endswith(("attn.logits", "attn.probs"))
    rows = mask[:, None, :] if over_heads else mask
    judged = rows.reshape(*rows.shape, *[1] * (len(shape) - rows.dim())).expand(shape)
    if name.endswith("attn.logits"):
        judged = judged & (taps[name.replace("logits", "probs")] > 0)
    return judged


def require(case: Case, what: str, found: Found, most: float) -> dict[str, object]:
    """What a trace says of a check. Throws GoldenError when it found too much; NaN is too much."""
    if not found.value <= most:
        text = f"expected at most {most:g}, got {found.value:.3g}"
        raise GoldenError(f"{case.name}: {what}: {found.tap}: {text}")
    return {what: {"tap": found.tap, "value": float(f"{found.value:.3g}")}}


def _worst(values: dict[str, float]) -> Found:
    """The largest value, a NaN before any."""
    name = max(values, key=lambda n: float("inf") if values[n] != values[n] else values[n])
    return Found(name, values[name])
