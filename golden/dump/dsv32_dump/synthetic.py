"""The values of synthetic weights: any tensor from its name and a seed, so that no file is needed.

Every value is exact in bfloat16, and its scale keeps the activations of a model of any size in
range.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .batch import philox_lanes
from .errors import DumpError

# First suffix that matches: (kind, g). "abs": bell * 2^g; "one": 1 + bell * 2^g; "fan": bell *
# 2^(g - k), where k grows with the length of the last axis (fan_shift).
WEIGHT_RULES: tuple[tuple[str, str, int], ...] = (
    ("embed_tokens.weight", "abs", -4),
    ("layernorm.weight", "one", -6),
    ("model.norm.weight", "one", -6),
    ("indexer.k_norm.weight", "one", -6),
    ("indexer.k_norm.bias", "abs", -6),
    ("e_score_correction_bias", "abs", -6),
    ("indexer.wk.weight", "fan", -4),
    ("q_b_proj.weight", "fan", 2),
    ("indexer.wq_b.weight", "fan", 1),
    ("lm_head.weight", "fan", 1),
    ("mlp.gate.weight", "fan", 1),
    ("lora_A.weight", "fan", 0),
    ("lora_B.weight", "abs", -10),
    ("", "fan", 0),
)


def bell(seed: int, name: str, count: int) -> np.ndarray:
    """`count` integers in [-30, 30], int16: the four nibbles of each lane summed, minus 30."""
    lanes = philox_lanes(seed, name, count, "<u2")
    pairs = (lanes & 0x0F0F) + ((lanes >> 4) & 0x0F0F)
    return ((pairs & 0xFF) + (pairs >> 8)).astype(np.int16) - 30


def fan_shift(last: int) -> int:
    """Smallest k with 4^k >= 85 * last.

    85 is the variance of bell, so a row of bell * 2^-k has a squared norm of at most about 1.
    """
    return next(k for k in range(64) if 4**k >= 85 * last)


def synthetic_values(
    seed: int, name: str, last: int, count: int, bias_offset: float = 0
) -> np.ndarray:
    """The first `count` values, float32, of the tensor `name` whose last axis has length `last`.

    bias_offset: added to the routers' correction biases, to unbalance the experts of a case.
    """
    _, kind, g = next(rule for rule in WEIGHT_RULES if name.endswith(rule[0]))
    exponent = g - fan_shift(last) if kind == "fan" else g
    value = bell(seed, name, count).astype(np.float32) * np.float32(2.0**exponent)
    if kind == "one":
        value += 1
    if name.endswith("e_score_correction_bias"):
        value += np.float32(bias_offset)
    return value


def case_values(case: dict[str, Any], name: str, shape: tuple[int, ...], count: int) -> np.ndarray:
    """The first `count` values, float32, of a weight of the case, its edits done.

    `shape` is the whole weight's. Throws DumpError where a result is not exact in bfloat16.
    """
    values = synthetic_values(case["seed"], name, shape[-1], count, case["bias_offset"])
    for edit in case.get("edits", ()):
        pattern = "[0-9]+".join(map(re.escape, edit["name"].split("*")))
        if re.fullmatch(pattern, name):
            _apply(edit, name, values, shape)
    return values


def _apply(edit: dict[str, Any], name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    """value * scale + add on one index of the first or of the last axis, in place."""
    axis = "row" if "row" in edit else "column"
    index, size = edit[axis], shape[0 if axis == "row" else -1]
    if not 0 <= index < size:
        raise DumpError(4, name, f"case.edits: {axis}", f"0..{size - 1}", str(index))
    inner = int(np.prod(shape[1:]))
    part = slice(index * inner, (index + 1) * inner) if axis == "row" else slice(index, None, size)
    exact = values[part].astype(np.float64) * edit.get("scale", 1) + edit.get("add", 0)
    done = exact.astype(np.float32)
    if not np.array_equal(done, exact) or (done.view(np.uint32) & 0xFFFF).any():
        raise DumpError(4, name, "case.edits", "values that are exact in bfloat16", repr(edit))
    values[part] = done
