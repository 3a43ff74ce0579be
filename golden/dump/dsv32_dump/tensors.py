"""Small helpers on tensors and on nested arguments that hold tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def keep(value: Tensor) -> Tensor:
    """A copy on the host: later in-place operations must not reach it."""
    return value.detach().to("cpu", copy=True)


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of nested arguments or outputs."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (tuple, list)):
        return next((v for v in map(first_tensor, value) if v is not None), None)
    if isinstance(value, dict):
        return first_tensor(list(value.values()))
    return None


def all_tensors(*values: Any) -> list[Tensor]:
    """The tensors of nested arguments, in order."""
    out: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            out.append(value)
        elif isinstance(value, (tuple, list)):
            out += all_tensors(*value)
        elif isinstance(value, dict):
            out += all_tensors(*value.values())
    return out


def detached(value: Any) -> Any:
    """Nested arguments with every tensor cut off from its graph."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (tuple, list):
        return type(value)(detached(v) for v in value)
    return {k: detached(v) for k, v in value.items()} if type(value) is dict else value


def deinterleave(x: Tensor) -> Tensor:
    """Lanes (0, 2, 4, ..., 1, 3, 5, ...)."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)


def interleave(x: Tensor) -> Tensor:
    """Inverse of deinterleave."""
    return torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)


def in_place_layout(before: Tensor, after: Tensor) -> tuple[Tensor, str]:
    """The rotated lanes with each value where it was before, and how they had been written.

    Hugging Face code writes the rotated pairs (2i, 2i+1) out as halves (i, i + rope/2): a legal
    permutation, since queries and keys share it, but no longer the tap of another implementation.
    A rotation keeps the length of each pair of lanes, up to one amplitude; so the lanes of `after`
    that have the lengths of the pairs of `before` tell which layout it is: pairs in place, halves
    in place, or pairs written out de-interleaved. The last one is put back.
    """
    x, y = before.double(), after.double()
    x_pairs = x[..., 0::2] ** 2 + x[..., 1::2] ** 2
    x_halves = sum(part**2 for part in x.chunk(2, dim=-1))
    y_pairs = y[..., 0::2] ** 2 + y[..., 1::2] ** 2
    y_halves = sum(part**2 for part in y.chunk(2, dim=-1))
    gain = y_pairs.sum() / x_pairs.sum().clamp_min(1e-300)
    misfit = {
        "pairs": (y_pairs - gain * x_pairs).abs().sum(),
        "halves": (y_halves - gain * x_halves).abs().sum(),
        "deinterleaved": (y_halves - gain * x_pairs).abs().sum(),
    }
    layout = min(misfit, key=lambda name: float(misfit[name]))
    return (interleave(after) if layout == "deinterleaved" else after), layout


def same_values(x: Tensor, shown: Tensor) -> bool:
    """Whether `x` holds the values of `shown` in the same order, whatever its dtype and axes of 1.

    Both middle axes of [B,S,heads,dim] being longer than 1, another shape is another order.
    """
    several = x.dim() == 4 and shown.shape[1] != 1 and shown.shape[2] != 1
    if x.numel() != shown.numel() or (several and x.shape != shown.shape):
        return False
    return torch.equal(x.double().reshape(shown.shape).nan_to_num(), shown.double().nan_to_num())
