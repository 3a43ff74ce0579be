"""Runs the demo on a case's batch and takes its taps.

Hooks on its modules give most of them; values that no module returns come from three functions that
are watched while the model runs: the softmax of attention, the router's product, the sum of routed
and shared experts. Padded rows run alone, without their padding: the demo knows none.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from agreement import limit
from real import GoldenError
from synthetic import Case, make_batch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from demo.kernels import Kernels
from demo.model import Demo, default_dtype, in_place_of_packages

OVER_KEYS = ("ix.scores", "attn.logits", "attn.probs")


def run(demo: Demo, case: Case, chunks: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """The forward taps of a case, in the shapes of docs/formats.md 4; rows of padding are 0.

    chunks: a first part and then single tokens, which the demo computes in its absorbed form.
    """
    batch = make_batch(case)
    ids, mask = (torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask"))
    groups = [list(range(case.B))] if bool(mask.all()) else [[row] for row in range(case.B)]
    out: dict[str, Tensor] = {}
    with in_place_of_packages(Kernels(demo.mode.quantised)), default_dtype(demo.mode.torch_dtype):
        for rows in groups:
            places = mask[rows[0]].nonzero().flatten()
            part = run_rows(demo, case, ids[rows][:, places], chunks)
            put_rows(out, part, case, rows, slice(int(places[0]), int(places[-1]) + 1))
    return out | {"loss.lm": lm_loss(out["logits"], torch.from_numpy(batch["labels"]))}


def run_rows(demo: Demo, case: Case, ids: Tensor, chunks: tuple[int, ...]) -> dict[str, Tensor]:
    """Taps of some rows without padding, [b, s, ...]."""
    length, start = ids.shape[1], 0
    pieces: dict[str, list[Tensor]] = {}
    with watched(demo, case) as watch:
        for count in chunks or (length,):
            for name, value in watch.passed(ids, start, start + count).items():
                pieces.setdefault(name, []).append(value)
            start += count
    if start != length:
        raise GoldenError(f"{case.name}: chunks: expected a sum of {length}, got {start}")
    return {name: joined(name, values, length) for name, values in pieces.items()}


def joined(name: str, pieces: list[Tensor], length: int) -> Tensor:
    """One tap of the passes of a run: keys to the final length, queries in a row."""
    tap = name.split(".", 2)[-1]
    if tap in OVER_KEYS:
        fill = 0.0 if tap == "attn.probs" else -math.inf
        pieces = [F.pad(p, (0, length - p.shape[-1]), value=fill) for p in pieces]
    return torch.cat(pieces, dim=2 if tap in ("attn.logits", "attn.probs") else 1)


def put_rows(
    out: dict[str, Tensor], part: dict[str, Tensor], case: Case, rows: list[int], place: slice
) -> None:
    """Puts the taps of some rows where they stand in the whole batch."""
    for name, value in part.items():
        tap = name.split(".", 2)[-1]
        if tap == "topk":
            value = torch.where(value >= 0, value + place.start, value)
        if tap in OVER_KEYS:
            fill = 0.0 if tap == "attn.probs" else -math.inf
            value = F.pad(value, (place.start, case.S - place.stop), value=fill)
        axis = 2 if tap in ("attn.logits", "attn.probs") else 1
        shape = list(value.shape)
        shape[0], shape[axis] = case.B, case.S
        empty = -1 if tap == "topk" else 0
        whole = out.setdefault(name, torch.full(shape, empty, dtype=value.dtype))
        if axis == 2:
            whole[rows, :, place] = value
        else:
            whole[rows, place] = value


def lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Of the demo's logits: it has no loss of its own."""
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
    )


@contextlib.contextmanager
def watched(demo: Demo, case: Case) -> Iterator[Watch]:
    """The model under watch; hooks and wrapped functions are gone afterwards."""
    watch = Watch(demo, case)
    module, before = demo.module, {}
    for name in ("rotate_activation", "fp8_index", "apply_rotary_emb"):
        before[name] = getattr(module, name)
        setattr(module, name, getattr(watch, name))
    watch.own = before
    try:
        yield watch
    finally:
        for hook in watch.hooks:
            hook.remove()
        for name, function in before.items():
            setattr(module, name, function)


class Watch(TorchFunctionMode):
    """Takes the taps of one pass at a time."""

    def __init__(self, demo: Demo, case: Case) -> None:
        super().__init__()
        self.demo, self.config = demo, case.config
        self.own: dict[str, Any] = {}
        self.taps: dict[str, Tensor] = {}
        self.layer, self.scope, self.shared = 0, "", None
        self.scores: Tensor | None = None
        self.hooks: list[Any] = []
        model = demo.model
        self.after(model.embed, lambda out: self.put("embed", out))
        self.after(model.norm, self.final_norm)
        for number, layer in enumerate(model.layers):
            self.watch_layer(number, layer)

    def passed(self, ids: Tensor, start: int, end: int) -> dict[str, Tensor]:
        """The taps of tokens [start, end); keys before them are in the model's caches."""
        self.taps, self.start, self.end = {}, start, end
        with self:
            last = self.demo.model(ids[:, start:end], start)
        with torch.inference_mode():
            logits = self.demo.model.head(self.taps["final_norm"].float())
        # The demo's head gives the last row alone: the others come from the same parameter.
        error = (logits[:, -1] - last).norm() / last.norm()
        if not error <= limit("demo.head"):
            raise GoldenError(f"logits: last row: expected the demo's own, got {error:.2g} away")
        self.put("logits", logits)
        return {name: value.clone() for name, value in self.taps.items()}

    def put(self, name: str, value: Tensor) -> None:
        self.taps[name] = value.detach().clone()

    def tap(self, name: str, value: Tensor) -> None:
        self.put(f"layers.{self.layer}.{name}", value)

    def after(self, module: nn.Module, act: Any) -> None:
        self.hooks.append(module.register_forward_hook(lambda _, args, out: act(out)))

    def within(self, module: nn.Module, scope: str) -> None:
        """Watched functions that are called in this module are of that scope."""

        def enter(*_: Any) -> None:
            self.scope = scope

        def leave(*_: Any) -> None:
            self.scope = ""

        self.hooks.append(module.register_forward_pre_hook(enter))
        self.hooks.append(module.register_forward_hook(leave))

    def watch_layer(self, number: int, layer: nn.Module) -> None:
        attn, ffn, c = layer.attn, layer.ffn, self.config
        heads, nope = c["num_attention_heads"], c["qk_nope_head_dim"]

        def begin(*_: Any) -> None:
            self.layer = number

        def split(x: Tensor, size: int) -> Tensor:
            return x.unflatten(-1, (size, -1))

        self.hooks.append(layer.register_forward_pre_hook(begin))
        self.after(layer.attn_norm, lambda out: self.norm(number, out))
        self.within(attn, "attention")
        self.after(attn.q_norm, lambda out: self.tap("q_latent", out))
        self.after(attn.wq_b, lambda out: self.tap("q_nope", split(out, heads)[..., :nope]))
        self.after(attn.indexer.weights_proj, self.index_weights)
        self.after(attn.indexer, self.selection)
        self.hooks.append(
            attn.wo.register_forward_pre_hook(
                lambda _, args: self.tap("attn.ctx", split(args[0], heads))
            )
        )
        self.after(attn, lambda out: self.attention(attn, out))
        self.after(layer.ffn_norm, lambda out: self.tap("ffn_norm", out[0]))
        self.after(ffn, lambda out: self.tap("mlp.out", out))
        if hasattr(ffn, "gate"):
            self.within(ffn, "moe")
            self.hooks.append(ffn.gate.register_forward_pre_hook(lambda *_: self.enter("gate")))
            self.after(ffn.gate, self.routing)
            self.after(ffn.shared_experts, self.shared_expert)

    def enter(self, scope: str) -> None:
        self.scope = scope

    def norm(self, number: int, out: Any) -> None:
        """A block's first norm: it also returns the residual stream of the layer before."""
        self.layer = number
        if isinstance(out, tuple):
            self.put(f"layers.{number - 1}.hidden", out[1])
        self.tap("attn_norm", out[0] if isinstance(out, tuple) else out)

    def final_norm(self, out: tuple[Tensor, Tensor]) -> None:
        self.tap("hidden", out[1])
        self.put("final_norm", out[0])

    def index_weights(self, out: Tensor) -> None:
        c = self.config
        self.tap("ix.weights", out * c["index_n_heads"] ** -0.5 * c["index_head_dim"] ** -0.5)

    def selection(self, picks: Tensor) -> None:
        """Scores with the mask in them, and the picks; those that no query may see are none."""
        scores = self.scores
        self.tap("ix.scores", scores)
        seen = scores.gather(-1, picks) > -math.inf
        picks = torch.where(seen, picks, -1).sort(descending=True).values
        count = (picks >= 0).sum(-1, keepdim=True)  # ascending in front, then -1
        place = torch.arange(picks.shape[-1])
        picks = picks.gather(-1, torch.where(place < count, count - 1 - place, place))
        width = self.config["index_topk"] - picks.shape[-1]
        self.tap("topk", F.pad(picks, (0, width), value=-1).to(torch.int32))
        self.scope = "attention"

    def attention(self, attn: nn.Module, out: Tensor) -> None:
        b, now = len(out), slice(self.start, self.end)
        self.tap("kv_latent", attn.kv_cache[:b, now])
        self.tap("k_rope", attn.pe_cache[:b, now])
        self.tap("attn.out", out)

    def routing(self, out: tuple[Tensor, Tensor]) -> None:
        weights, experts = out
        order = experts.argsort(-1)
        self.tap("router.experts", self.rows(experts.gather(-1, order)).to(torch.int32))
        self.tap("router.weights", self.rows(weights.gather(-1, order)))
        self.scope = "moe"

    def shared_expert(self, out: Tensor) -> None:
        self.shared = out
        self.tap("moe.shared", self.rows(out))

    def rows(self, x: Tensor) -> Tensor:
        """[b * s, n] as [b, s, n]."""
        return x.unflatten(0, self.taps["embed"].shape[:2])

    # The demo's own functions, under watch.

    def apply_rotary_emb(self, x: Tensor, freqs_cis: Tensor, interleaved: bool = True) -> Tensor:
        out = self.own["apply_rotary_emb"](x, freqs_cis, interleaved)
        if interleaved and f"layers.{self.layer}.q_rope" not in self.taps:  # queries come first
            self.tap("q_rope", out)
        return out

    def rotate_activation(self, x: Tensor) -> Tensor:
        """Hadamard, where the run has it: queries come first, then keys."""
        self.tap("ix.q" if x.dim() == 4 else "ix.k", x)
        return self.own["rotate_activation"](x) if self.demo.mode.quantised else x

    def fp8_index(self, *args: Tensor) -> Tensor:
        self.scores = self.own["fp8_index"](*args)
        return self.scores

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        routed = None
        if self.scope == "moe" and name == "add_" and args[1] is self.shared:
            routed = args[0].clone()
        out = function(*args, **(kwargs or {}))
        if self.scope == "attention" and name == "softmax":
            self.tap("attn.logits", args[0].transpose(1, 2))
            self.tap("attn.probs", out.transpose(1, 2))
        elif self.scope == "gate" and name == "linear":
            self.tap("router.logits", self.rows(out))
        elif routed is not None:
            self.tap("moe.routed", self.rows(routed))
        return out
