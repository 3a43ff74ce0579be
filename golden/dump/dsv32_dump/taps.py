"""From what a recorder saw to the taps of a trace: canonical names, shapes and layouts.

The layout of a fork is its own business: heads before or after tokens, picks in any order, filling
for keys that do not exist. A tap has one form, so that the judge compares like with like. What has
no such form is not made up: it is listed as missing, with the reason.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .recorder import Recorder
from .tensors import in_place_layout

# A score that an additive mask of any dtype (float16 has the smallest, -65504) pushed out of reach.
MASKED_SCORE = -3e4
LAYER_TAPS = (
    "attn_norm q_latent kv_latent q_nope q_rope k_rope ix.q ix.k ix.weights ix.scores topk "
    "attn.logits attn.probs attn.ctx attn.out ffn_norm router.logits router.experts "
    "router.weights moe.routed moe.shared mlp.out hidden"
).split()
MOE_TAPS = ("router.logits", "router.experts", "router.weights", "moe.routed", "moe.shared")


class Taps:
    """The taps of one pass (or chunk), from what a Recorder saw.

    visible: [B,S,T], the keys that each query may see; dense: there is no selection of keys.
    """

    def __init__(self, recorder: Recorder, visible: Tensor, dense: bool) -> None:
        self.r, self.visible, self.dense = recorder, visible, dense
        self.out: dict[str, Tensor] = {}
        self.derived: set[str] = set()
        self.reasons: dict[str, str] = {}

    def build(self) -> None:
        """Fills `out`, `derived` (computed here) and `reasons` (what is missing, and why)."""
        hidden = self.r.sizes.hidden
        self.token("embed", -1, "embed", hidden)
        for layer in sorted({layer for layer, _ in self.r.raw if layer >= 0}):
            self.attention(layer)
            self.indexer(layer)
            self.maps(layer)
            self.block(layer)
        self.token("final_norm", -1, "final_norm", hidden)

    def get(self, layer: int, *keys: str) -> Tensor | None:
        """The first of these raw values that was seen."""
        return next((self.r.raw[layer, key] for key in keys if (layer, key) in self.r.raw), None)

    def put(self, name: str, value: Tensor | None, *shape: int) -> None:
        """A value of another shape than the format's is no tap: it is listed with its reason."""
        if not self.r.wanted(name):
            return
        if value is None:
            self.reasons.setdefault(name, "not found")
        elif tuple(value.shape) != shape:
            self.reasons[name] = f"expected {list(shape)}, got {list(value.shape)}"
        else:
            self.out[name] = value.contiguous()

    def token(self, name: str, layer: int, key: str, *rest: int) -> None:
        """A raw value that has one row per token, as the tap [B,S,*rest]."""
        value = self.get(layer, key)
        shape = (self.r.B, self.r.S, *rest)
        if value is not None and value.numel() == math.prod(shape):
            value = value.reshape(shape)
        self.put(name, value, *shape)

    def attention(self, layer: int) -> None:
        r, sizes, at = self.r, self.r.sizes, f"layers.{layer}."
        self.token(at + "attn_norm", layer, "attn_norm", sizes.hidden)
        self.token(at + "q_latent", layer, "q_norm", sizes.q_lora)
        self.token(at + "kv_latent", layer, "kv_norm", sizes.kv_lora)
        q = self.get(layer, "q_b")
        q = q.reshape(r.B, r.S, sizes.heads, -1) if q is not None else None
        rotated = r.rotations.get((layer, "q_b"))
        first = rotated is not None and rotated.start == 0  # rope before nope
        nope = None if q is None else q[..., sizes.rope :] if first else q[..., : sizes.nope]
        self.put(at + "q_nope", nope, r.B, r.S, sizes.heads, sizes.nope)
        q_rope = self.rope(layer, "q_b", "query", sizes.heads)
        self.put(at + "q_rope", q_rope, r.B, r.S, sizes.heads, sizes.rope)
        k_rope = self.rope(layer, "kv_a", "key", 1)
        self.put(at + "k_rope", None if k_rope is None else k_rope.squeeze(2), r.B, r.S, sizes.rope)
        self.token(at + "attn.ctx", layer, "ctx", sizes.heads, sizes.v)
        self.token(at + "attn.out", layer, "attention", sizes.hidden)

    def rope(self, layer: int, projection: str, state: str, heads: int) -> Tensor | None:
        """Rotated lanes [B,S,heads,rope].

        From the rotary function; of a model that rotates inline from the states that attention got.
        """
        rotated = self.r.rotations.get((layer, projection))
        if rotated is not None:
            return rotated.value
        before, after = self.get(layer, projection), self.get(layer, state)
        if before is None or after is None:
            return None
        lanes = before.reshape(self.r.B, self.r.S, heads, -1)[..., -self.r.sizes.rope :]
        after = after.transpose(1, 2) if after.dim() == 4 else after.unsqueeze(2)
        canonical, self.r.layouts["main"] = in_place_layout(lanes, after)
        return canonical

    def indexer(self, layer: int) -> None:
        r, sizes, at = self.r, self.r.sizes, f"layers.{layer}."
        q = self.index_states(layer, "wq_b", sizes.ix_heads)
        self.put(at + "ix.q", q, r.B, r.S, sizes.ix_heads, sizes.ix_dim)
        k = self.index_states(layer, "k_norm", 1)
        self.put(at + "ix.k", None if k is None else k.squeeze(2), r.B, r.S, sizes.ix_dim)
        weights = self.get(layer, "weights_proj", "weights_linear")
        if weights is not None:
            weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
            weights = weights.reshape(r.B, r.S, -1)
            weights = weights * sizes.ix_heads**-0.5 * sizes.ix_dim**-0.5
            self.derived.add(at + "ix.weights")
        self.put(at + "ix.weights", weights, r.B, r.S, sizes.ix_heads)
        self.selection(layer, at)

    def index_states(self, layer: int, key: str, heads: int) -> Tensor | None:
        """Whole index queries or keys: the rotated lanes put back between the others."""
        states, rotated = self.get(layer, key), self.r.rotations.get((layer, key))
        if states is None or rotated is None:
            return None
        states = states.reshape(self.r.B, self.r.S, heads, -1)
        end = rotated.start + self.r.sizes.rope
        parts = [states[..., : rotated.start], rotated.value, states[..., end:]]
        dtype = functools.reduce(torch.promote_types, (p.dtype for p in parts))
        return torch.cat([p.to(dtype) for p in parts], dim=-1)

    def selection(self, layer: int, at: str) -> None:
        """Index scores and picked keys: as a topk or sort saw them, else the indexer's outputs."""
        r, topk = self.r, self.r.sizes.topk
        scores, picked = self.get(layer, "scores"), self.get(layer, "selected")
        outputs = r.raw.get((layer, "indexer_out"), [])
        if scores is None:
            scores = self.scores_among(outputs)
        if picked is None:
            integers = (t for t in outputs if not t.is_floating_point() and t.dtype != torch.bool)
            picked = next((t for t in integers if t.dim() == 3), None)
        raw = scores
        if scores is not None:
            scores = scores.masked_fill(~self.visible & (scores < MASKED_SCORE), -math.inf)
        self.put(at + "ix.scores", scores, r.B, r.S, r.T)
        if not self.dense:
            self.put(at + "topk", self.visible_picks(picked, raw, topk), r.B, r.S, topk)

    def scores_among(self, outputs: list[Tensor]) -> Tensor | None:
        """The index scores among the outputs of an indexer: [B,S,T], and no mask of 0 and -inf."""
        shape = (self.r.B, self.r.S, self.r.T)
        shaped = [t for t in outputs if t.is_floating_point() and tuple(t.shape) == shape]
        return next((t for t in shaped if ((t != 0) & t.isfinite()).any()), None)

    def visible_picks(
        self, picked: Tensor | None, scores: Tensor | None, width: int
    ) -> Tensor | None:
        """Picks ascending, -1 at the end.

        A pick of a masked key is filling and becomes -1. One of a key that should have been masked
        but was not is kept: it is an error of the model that the judge must see.
        """
        if picked is None or picked.dim() != 3 or picked.shape[:2] != self.visible.shape[:2]:
            return picked
        picked = picked.long()
        inside = (picked >= 0) & (picked < self.r.T)
        safe = picked.clamp(0, self.r.T - 1)
        hidden = ~self.visible.gather(-1, safe)
        masked = hidden if scores is None else hidden & (scores.gather(-1, safe) < MASKED_SCORE)
        last = torch.iinfo(torch.int64).max
        picked = torch.where((inside & masked) | (picked < 0), last, picked).sort(dim=-1).values
        picked = torch.where(picked == last, -1, picked).to(torch.int32)
        if picked.shape[-1] > width and (picked[..., width:] == -1).all():
            picked = picked[..., :width]
        return torch.nn.functional.pad(picked, (0, max(0, width - picked.shape[-1])), value=-1)

    def maps(self, layer: int) -> None:
        r, at = self.r, f"layers.{layer}."
        shape = (r.B, r.sizes.heads, r.S, r.T)
        logits, probs = self.get(layer, "logits"), self.get(layer, "attention_weights", "softmax")
        if logits is None and (layer, "derived_logits") in r.raw:
            logits = r.raw[layer, "derived_logits"]
            self.derived.add(at + "attn.logits")
        if probs is None and (layer, "derived_probs") in r.raw:
            probs = r.raw[layer, "derived_probs"]
            self.derived.add(at + "attn.probs")
        for name, value in (("attn.logits", logits), ("attn.probs", probs)):
            if value is not None and tuple(value.shape) != shape and value.dim() == 4:
                value = value.transpose(1, 2)
            self.put(at + name, value, *shape)

    def block(self, layer: int) -> None:
        sizes, at = self.r.sizes, f"layers.{layer}."
        self.token(at + "ffn_norm", layer, "ffn_norm", sizes.hidden)
        if layer in self.r.moe_layers:
            self.router(layer, at)
            routed = "experts" if (layer, "experts") in self.r.raw else "routed_operand"
            self.token(at + "moe.routed", layer, routed, sizes.hidden)
            self.token(at + "moe.shared", layer, "shared", sizes.hidden)
        mlp = "moe" if layer in self.r.moe_layers else "mlp"
        self.token(at + "mlp.out", layer, mlp, sizes.hidden)
        self.token(at + "hidden", layer, "layer", sizes.hidden)

    def router(self, layer: int, at: str) -> None:
        r, K = self.r, self.r.sizes.experts_per_token
        self.token(at + "router.logits", layer, "router_logits", r.sizes.experts)
        index, weight = self.get(layer, "experts_index"), self.get(layer, "experts_weight")
        if index is not None and weight is not None:
            order = index.reshape(r.B, r.S, K).long().sort(dim=-1)
            index = order.values.to(torch.int32)
            weight = weight.reshape(r.B, r.S, K).gather(-1, order.indices)
        self.put(at + "router.experts", index, r.B, r.S, K)
        self.put(at + "router.weights", weight, r.B, r.S, K)


def expected_taps(layers: int, moe_layers: set[int], dense: bool) -> list[str]:
    """Every forward tap of this model, in execution order."""
    names = ["embed"]
    for layer in range(layers):
        for tap in LAYER_TAPS:
            if (tap not in MOE_TAPS or layer in moe_layers) and not (tap == "topk" and dense):
                names.append(f"layers.{layer}.{tap}")
    return [*names, "final_norm", "logits", "loss.lm"]


def join_chunks(name: str, pieces: list[Tensor], T: int) -> Tensor:
    """The concatenation over the chunks of a prefill.

    Keys are padded to the final length T: -inf in scores and logits, 0 in probabilities.
    """
    if len(pieces) == 1:
        return pieces[0]
    tap = name.partition(".")[2].partition(".")[2] if name.startswith("layers.") else name
    if tap in ("ix.scores", "attn.logits", "attn.probs"):
        fill = 0.0 if tap == "attn.probs" else -math.inf
        pieces = [torch.nn.functional.pad(p, (0, T - p.shape[-1]), value=fill) for p in pieces]
    return torch.cat(pieces, dim=2 if tap in ("attn.logits", "attn.probs") else 1)
