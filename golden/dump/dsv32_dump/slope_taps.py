"""From gradients of raw values to the taps `dtap.NAME`, in the layout of NAME.

A tap is a raw value in another order, so its gradient is that of the raw value in that order. Where
the order follows from values (experts ascending), the values are asked.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor

from .recorder import Recorder, Rotation
from .slopes import Slopes
from .taps import Taps, expected_taps
from .tensors import interleave

# What has no gradient by nature: decisions and, in no_grad, whatever leads to them.
DECISIONS = ("topk", "router.experts")


class SlopeTaps(Taps):
    """The taps of one backward pass; `values` is the recorder of the forward pass before it."""

    def __init__(self, values: Recorder, slopes: Slopes, dense: bool) -> None:
        self.values, self.slopes = values, slopes
        found = {key: g for key, g in slopes.found.items() if not key[1].endswith(" rotated")}
        recorder = copy.copy(values)
        recorder.raw = found
        recorder.rotations = {
            key: Rotation(slopes.found[key[0], f"{key[1]} rotated"], rotation.start)
            for key, rotation in values.rotations.items()
            if (key[0], f"{key[1]} rotated") in slopes.found
        }
        super().__init__(recorder, torch.empty(0), dense)

    def build(self) -> None:
        super().build()
        r = self.r
        self.token("logits", -1, "logits", r.sizes.vocab)

    def stopped(self, taps: Iterable[str], derived: Iterable[str]) -> list[str]:
        """The taps among `taps` that back-propagation passed by: no graph, nothing or zeros came.

        In its order: the first one is where it stopped. derived: what the model itself never had.
        """
        zero = {name for name in taps if f"dtap.{name}" in self.out and not self.any(name)}
        lost = zero | {name for name in taps if f"dtap.{name}" in self.reasons} - set(derived)
        order = expected_taps(self.r.sizes.layers, self.r.moe_layers, self.dense)
        return [name for name in reversed(order) if name in lost]

    def any(self, name: str) -> bool:
        return bool((self.out[f"dtap.{name}"] != 0).any())

    def put(self, name: str, value: Tensor | None, *shape: int) -> None:
        if name.split(".", 2)[-1] not in DECISIONS:
            super().put(f"dtap.{name}", value, *shape)

    def rope(self, layer: int, projection: str, state: str, heads: int) -> Tensor | None:
        rotated = self.r.rotations.get((layer, projection))
        if rotated is not None:
            return rotated.value
        after = self.get(layer, state)
        if after is None or (layer, projection) in self.values.rotations:
            return None
        after = after.transpose(1, 2) if after.dim() == 4 else after.unsqueeze(2)
        return interleave(after) if self.r.layouts.get("main") == "deinterleaved" else after

    def indexer(self, layer: int) -> None:
        super().indexer(layer)
        name = f"dtap.layers.{layer}.ix.weights"
        if name in self.out:  # the tap is the raw value times both scales
            sizes = self.r.sizes
            self.out[name] = self.out[name] * (sizes.ix_heads * sizes.ix_dim)
            self.derived.discard(f"layers.{layer}.ix.weights")

    def selection(self, layer: int, at: str) -> None:
        r = self.r
        self.put(at + "ix.scores", self.get(layer, "scores"), r.B, r.S, r.T)

    def maps(self, layer: int) -> None:
        r, at = self.r, f"layers.{layer}."
        shape = (r.B, r.sizes.heads, r.S, r.T)
        for name, keys in (
            ("attn.logits", ("logits",)),
            ("attn.probs", ("attention_weights", "softmax")),
        ):
            value = self.get(layer, *keys)
            if value is not None and tuple(value.shape) != shape and value.dim() == 4:
                value = value.transpose(1, 2)
            self.put(at + name, value, *shape)

    def router(self, layer: int, at: str) -> None:
        r, K = self.r, self.r.sizes.experts_per_token
        self.token(at + "router.logits", layer, "router_logits", r.sizes.experts)
        index = self.values.raw.get((layer, "experts_index"))
        weight = self.get(layer, "experts_weight")
        if index is not None and weight is not None:
            order = index.reshape(r.B, r.S, K).long().argsort(dim=-1)
            weight = weight.reshape(r.B, r.S, K).gather(-1, order)
        self.put(at + "router.weights", weight, r.B, r.S, K)
