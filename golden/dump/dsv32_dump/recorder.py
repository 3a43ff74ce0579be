"""Watches one forward pass and keeps the raw material of its taps.

Two sources feed the recorder: hooks on the modules that parts.py knows (watch.py installs them),
and a TorchFunctionMode, which sees every torch function while the pass runs. The second one is
needed for values that no module returns: index scores, softmax inputs, routing, the routed sum
before the shared expert is added. Nothing is changed on the way, but for decisions that a caller
forces.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .parts import Part, Sizes, find_parts
from .slopes import Slope, Slopes
from .tensors import (
    all_tensors,
    deinterleave,
    first_tensor,
    in_place_layout,
    interleave,
    keep,
    same_values,
)

ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
PRODUCTS = {"matmul", "__matmul__", "bmm", "einsum"}
# The functions whose calls are looked at; all others pass at once.
WATCHED = (
    {"topk", "sort", "argsort", "softmax", "linear", "scaled_dot_product_attention"}
    | ADDITIONS
    | PRODUCTS
)
# Roles whose modules give a watched call its meaning: the innermost one counts.
SCOPES = {"attention", "indexer", "moe", "gate", "experts"}


@dataclasses.dataclass
class Frame:
    """One module call in progress.

    The stack of frames tells in which part of the model a torch function is called, and, when the
    model raises, which module with inputs of which shapes was to blame.
    """

    name: str
    part: Part | None
    shapes: list[list[int]]


@dataclasses.dataclass
class Rotation:
    """The rope lanes of one projection after rotation, [B,S,heads,rope].

    The rotary function of a fork returns lanes only; `start`, where they sit in a head, says which
    of the taps they belong to and how whole index queries and keys are put together again.
    """

    value: Tensor
    start: int


class Recorder(TorchFunctionMode):
    """Collects the raw material of one forward pass over `S` new tokens with `T` keys in all."""

    def __init__(self, model: nn.Module, sizes: Sizes, wanted: Callable[[str], bool]) -> None:
        super().__init__()
        self.model, self.sizes, self.wanted = model, sizes, wanted
        self.parts = find_parts(model)
        self.moe_layers = {p.layer for p in self.parts.values() if p.role == "moe"}
        self.layouts: dict[str, str] = {}
        self.forced: dict[str, Tensor] = {}
        self.live = False  # the indexer runs with gradients, on detached inputs
        self.live_scores: dict[int, Tensor] = {}  # layer -> B * S * T scores with their graph
        self.recording = False
        self.slopes: Slopes | None = None  # gradients of what is put, where a caller wants them
        self.begin(0, 0, 0)

    def begin(self, B: int, S: int, T: int) -> None:
        """Forgets the pass before; the next one has B rows of S new tokens and T keys."""
        self.B, self.S, self.T = B, S, T
        self.raw: dict[tuple[int, str], Any] = {}
        self.rotations: dict[tuple[int, str], Rotation] = {}
        self.stack: list[Frame] = []

    # Module calls.

    def before(self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not self.recording:
            return
        part = self.parts.get(name)
        self.stack.append(
            Frame(name or "model", part, [list(t.shape) for t in all_tensors(args, kwargs)])
        )
        if part and part.role == "o_proj":
            self.put(part.layer, "ctx", first_tensor([args, kwargs]))
        elif part and part.role == "experts":
            self.put_routing(part.layer, all_tensors(args, kwargs))

    def after(
        self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any
    ) -> None:
        if not self.recording or not self.stack:
            return
        part = self.stack.pop().part
        if part is None:
            return
        if part.role == "attention":
            self.put(part.layer, "attention", first_tensor(out))
            maps = [t for t in all_tensors(out)[1:] if self.is_map(t)]
            if maps:
                self.put(part.layer, "attention_weights", maps[0])
        elif part.role == "gate":
            self.put_routing(part.layer, all_tensors(out))
            self.put_logits(part.layer, all_tensors(out))
        elif part.role == "indexer":
            self.raw[part.layer, "indexer_out"] = [keep(t) for t in all_tensors(out)]
        else:
            self.put(part.layer, part.role, first_tensor(out))
            if part.role == "shared":
                self.raw[part.layer, "shared_object"] = out

    def put(
        self,
        layer: int,
        key: str,
        value: Tensor | None,
        replace: bool = True,
        of: Slope | None = None,
    ) -> None:
        """Keeps a raw value. of: whose gradient is the value's, where it is only a copy itself."""
        if value is not None and (replace or (layer, key) not in self.raw):
            self.raw[layer, key] = keep(value)
            if self.slopes is not None:
                self.slopes.watch((layer, key), of or Slope(value))

    def put_logits(self, layer: int, tensors: list[Tensor]) -> None:
        shaped = [
            t for t in tensors if t.is_floating_point() and t.shape[-1:] == (self.sizes.experts,)
        ]
        shaped = [t for t in shaped if t.numel() == self.B * self.S * self.sizes.experts]
        if shaped:
            self.put(layer, "router_logits", shaped[0], replace=False)

    def put_routing(self, layer: int, tensors: list[Tensor]) -> None:
        """Keeps the integer and the float tensor with one entry per token and chosen expert."""
        size = self.B * self.S * self.sizes.experts_per_token
        shaped = [
            t for t in tensors if t.numel() == size and t.shape[-1] == self.sizes.experts_per_token
        ]
        indices = [t for t in shaped if not t.is_floating_point()]
        weights = [t for t in shaped if t.is_floating_point()]
        if indices and weights:
            self.put(layer, "experts_index", indices[0])
            self.put(layer, "experts_weight", weights[-1])

    def scope(self) -> Part | None:
        """The innermost known part that is running."""
        for frame in reversed(self.stack):
            if frame.part and frame.part.role in SCOPES:
                return frame.part
        return None

    def inside_indexer(self) -> bool:
        part = self.scope()
        return part is not None and part.role == "indexer"

    def is_map(self, t: Tensor) -> bool:
        """Whether a tensor has the shape of attention logits or probabilities."""
        B, H, S, T = self.B, self.sizes.heads, self.S, self.T
        return t.is_floating_point() and tuple(t.shape) in ((B, H, S, T), (B, S, H, T))

    # Functions of torch.

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.live and self.recording and self.inside_indexer():
            func = torch.enable_grad()(func)  # whatever no_grad stands around it
        if not self.recording or name not in WATCHED:
            return func(*args, **kwargs)
        part = self.scope()
        out = func(*args, **kwargs)
        if part is None:
            return out
        if name in ("topk", "sort", "argsort"):
            return self.on_order(part, name, args, kwargs, out)
        own = self.stack[-1].part == part  # not inside a child module that has no scope of its own
        if part.role in ("gate", "moe") and own and name in PRODUCTS | {"linear"}:
            self.on_gate_product(part, args, kwargs, out)
        elif part.role == "moe" and name in ADDITIONS:
            self.on_addition(part, args)
        elif part.role == "indexer" and name == "linear":
            self.on_index_linear(part, args, kwargs, out)
        elif part.role == "attention" and name == "softmax":
            self.on_softmax(part, args, kwargs, out)
        elif part.role == "attention" and name == "scaled_dot_product_attention":
            self.on_fused_attention(part, func, args, kwargs)
        elif part.role == "attention" and name in PRODUCTS:
            self.on_attention_product(part, args)
        return out

    def on_order(self, part: Part, name: str, args: tuple, kwargs: dict[str, Any], out: Any) -> Any:
        scores = first_tensor([args, kwargs])
        if scores is None or not scores.is_floating_point():
            return out
        if part.role in ("indexer", "attention"):
            if scores.shape[-1:] == (self.T,) and scores.numel() == self.B * self.S * self.T:
                return self.on_selection(part, name, scores, out)
        elif name == "topk" and scores.shape in (
            (self.B * self.S, self.sizes.experts),
            (self.B, self.S, self.sizes.experts),
        ):
            return self.on_routing(part, out)
        return out

    def on_selection(self, part: Part, name: str, scores: Tensor, out: Any) -> Any:
        """The index scores as the selection sees them, and what it picks."""
        forced = self.forced.get(f"layers.{part.layer}.topk")
        if forced is not None and name == "topk":
            out = _replace_indices(out, forced[..., : self.T], scores)
        indices = out if name == "argsort" else out[1]
        if self.live and scores.requires_grad:
            self.live_scores[part.layer] = scores
        shape = (self.B, self.S, self.T)
        slope = Slope(scores, lambda g: g.reshape(shape))
        self.put(part.layer, "scores", scores.reshape(shape), of=slope)
        picked = indices if name == "topk" else indices[..., : self.sizes.topk]
        if forced is not None:
            picked = forced  # as asked for: with -1, and without the repetition that stands for it
        self.put(part.layer, "selected", picked.reshape(self.B, self.S, -1))
        return out

    def on_routing(self, part: Part, out: Any) -> Any:
        forced = self.forced.get(f"layers.{part.layer}.router.experts")
        if forced is not None and out[1].shape[-1] == self.sizes.experts_per_token:
            out = _replace_indices(out, forced, None)
        return out

    def on_gate_product(self, part: Part, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        x = first_tensor([args, kwargs])
        if (
            isinstance(out, Tensor)
            and x is not None
            and x.numel() == self.B * self.S * self.sizes.hidden
        ):
            self.put_logits(part.layer, [out])

    def on_addition(self, part: Part, args: tuple) -> None:
        """routed + shared: where the shared output is one operand, the other is the routed sum."""
        shared = self.raw.get((part.layer, "shared_object"))
        tensors = [a for a in args if isinstance(a, Tensor)]
        if shared is not None and len(tensors) == 2 and any(t is shared for t in tensors):
            other = tensors[1] if tensors[0] is shared else tensors[0]
            if other.numel() == shared.numel():
                self.put(part.layer, "routed_operand", other, replace=False)

    def on_index_linear(self, part: Part, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        """weights_proj that is applied as a function on its weight, not called as a module."""
        x = first_tensor([args, kwargs])
        shape = (self.sizes.ix_heads, self.sizes.hidden)
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        if x is not None and isinstance(weight, Tensor) and tuple(weight.shape) == shape:
            if self.sizes.ix_heads != self.sizes.ix_dim or self.stack[-1].part == part:
                self.put(part.layer, "weights_linear", out, replace=False)

    def on_softmax(self, part: Part, args: tuple, kwargs: dict[str, Any], out: Tensor) -> None:
        logits = first_tensor([args, kwargs])
        if logits is not None and self.is_map(logits):
            self.put(part.layer, "logits", logits, replace=False)
            self.put(part.layer, "softmax", out, replace=False)

    def on_fused_attention(
        self, part: Part, func: Any, args: tuple, kwargs: dict[str, Any]
    ) -> None:
        """Logits and probabilities never exist here: they follow from the arguments."""
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        self.put_states(part, given["query"], given["key"])
        query, key = given["query"].detach(), given["key"].detach()
        if query.dim() != 4 or not (self.wanted("attn.logits") or self.wanted("attn.probs")):
            return
        logits, probs = fused_attention_maps(query, key, given)
        if self.is_map(logits):
            self.raw[part.layer, "derived_logits"] = keep(logits)
            self.raw[part.layer, "derived_probs"] = keep(probs)

    def on_attention_product(self, part: Part, args: tuple) -> None:
        tensors = all_tensors(args)
        if len(tensors) == 2:
            query, key = tensors
            self.put_states(part, query, key, turned=key.dim() == 4)

    def put_states(self, part: Part, query: Tensor, key: Tensor, turned: bool = False) -> None:
        """Query and key states, for models that rotate inline: no rotary function to watch.

        turned: the last two axes of the key are exchanged.
        """
        live, key = key, key.transpose(-1, -2) if turned else key
        sizes = self.sizes
        width = sizes.nope + sizes.rope
        wanted = ((self.B, sizes.heads, self.S, width), (self.B, sizes.heads, self.T, width))
        if (tuple(query.shape), tuple(key.shape)) == wanted:
            lanes, own = slice(sizes.nope, None), slice(-self.S, None)
            slope = Slope(query, lambda g: g[..., lanes])
            self.put(part.layer, "query", query[..., lanes], replace=False, of=slope)

            def shared(g: Tensor) -> Tensor:  # one key, handed to all heads
                g = g.transpose(-1, -2) if turned else g
                return g[:, :, own, lanes].sum(1)

            slope = Slope(live, shared)
            self.put(part.layer, "key", key[:, 0, own, lanes], replace=False, of=slope)

    # Rotary functions.

    def on_rotary(self, inputs: list[Tensor], out: Any) -> None:
        """A call of a rotary function: each input with the output of its shape."""
        part = self.scope()
        if part is None or part.role not in ("attention", "indexer"):
            return
        outputs = all_tensors(out)
        for x in inputs:
            y = next((t for t in outputs if t.shape == x.shape), None)
            if y is None:
                continue
            outputs = [t for t in outputs if t is not y]
            self.match_rotation(part, x.cpu(), y)

    def sources(self, part: Part) -> list[tuple[str, Tensor]]:
        """The projections that have rope lanes, as [B,S,heads,dim]."""
        if part.role == "attention":
            shapes = {"q_b": self.sizes.heads, "kv_a": 1}
        else:
            shapes = {"wq_b": self.sizes.ix_heads, "k_norm": 1}
        found = [(key, self.raw.get((part.layer, key)), heads) for key, heads in shapes.items()]
        return [(k, v.reshape(self.B, self.S, heads, -1)) for k, v, heads in found if v is not None]

    def match_rotation(self, part: Part, x: Tensor, y: Tensor) -> None:
        """Finds which lanes of which projection were rotated: those that the function got."""
        after = keep(y)
        for key, source in self.sources(part):
            if (part.layer, key) in self.rotations:
                continue
            for start, permuted, swapped in self.arrangements(part, source):
                lanes = source[..., start : start + self.sizes.rope]
                shown = deinterleave(lanes) if permuted else lanes
                shown = shown.transpose(1, 2) if swapped else shown
                if not same_values(x, shown):
                    continue
                order = Order(shown.shape, swapped)
                canonical, layout = in_place_layout(lanes, order(after))
                self.layouts["main" if part.role == "attention" else "indexer"] = layout
                self.rotations[part.layer, key] = Rotation(canonical, start)
                if self.slopes is not None:
                    order = dataclasses.replace(order, deinterleaved=layout == "deinterleaved")
                    self.slopes.watch((part.layer, f"{key} rotated"), Slope(y, order))
                return

    def arrangements(self, part: Part, source: Tensor) -> Iterator[tuple[int, bool, bool]]:
        """Ways to hand over lanes: the first of them, de-interleaved or not, heads first or not."""
        last = source.shape[-1] - self.sizes.rope
        starts = (last, 0) if part.role == "attention" else (0, last)
        for start in dict.fromkeys(starts):
            for permuted in (False, True):
                yield start, permuted, False
                yield start, permuted, True


@dataclasses.dataclass(frozen=True)
class Order:
    """From the layout in which a rotary function returns lanes to [B,S,heads,rope]."""

    shape: torch.Size
    swapped: bool  # heads come before tokens
    deinterleaved: bool = False

    def __call__(self, lanes: Tensor) -> Tensor:
        lanes = lanes.reshape(self.shape)
        lanes = lanes.transpose(1, 2) if self.swapped else lanes
        return interleave(lanes) if self.deinterleaved else lanes


def _replace_indices(out: Any, forced: Tensor, scores: Tensor | None) -> Any:
    """A topk result with other indices.

    -1, for no key, repeats the row's first pick, which a scatter or a mask does not notice.
    """
    own = out[1]
    wanted = forced.to(own.device).to(own.dtype).reshape(-1, forced.shape[-1])
    if scores is not None:
        wanted = wanted.sort(dim=-1, descending=True).values
        if wanted.shape[-1] < own.shape[-1]:
            wanted = torch.cat(
                (wanted, wanted.new_full((wanted.shape[0], own.shape[-1] - wanted.shape[-1]), -1)),
                dim=-1,
            )
    wanted = wanted[:, : own.shape[-1]].reshape(own.shape)
    first = wanted[..., :1]
    wanted = torch.where(wanted < 0, first, wanted)
    indices = torch.where(first < 0, own, wanted)
    values = out[0] if scores is None else scores.gather(-1, indices)
    return torch.return_types.topk((values, indices))


def fused_attention_maps(
    query: Tensor, key: Tensor, given: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Logits and probabilities of a fused attention call, in float32 or more.

    A fused kernel never has them in memory; they follow from what it was given.
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    scale = given.get("scale")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = torch.matmul(query.to(exact), key.to(exact).transpose(-1, -2)) * scale
    masked, mask = logits, given.get("attn_mask")
    if given.get("is_causal"):
        causal = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        masked = masked.masked_fill(~causal, -math.inf)
    if isinstance(mask, Tensor):
        mask = mask.detach()
        masked = (
            masked.masked_fill(~mask, -math.inf)
            if mask.dtype == torch.bool
            else masked + mask.to(exact)
        )
    return logits, masked.softmax(dim=-1).nan_to_num(0.0)
