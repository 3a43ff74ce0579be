"""Gradients under the checkpoint's names, after a backward pass."""

from __future__ import annotations

import torch
from dsv32_trace import unfused
from torch import Tensor, nn

from .tensors import keep
from .weights import is_transposed, loaded_tensors


def gradients_of(model: nn.Module, hidden: int) -> tuple[dict[str, Tensor], list[str]]:
    """Taps grad.NAME of all parameters that have a gradient, and the names of those that have none.

    A frozen parameter is in neither.
    """
    filled: dict[str, Tensor] = {}
    none: list[str] = []
    for name, parameter in model.named_parameters():
        transposed = is_transposed(model, name)
        if parameter.grad is not None:
            views = unfused(name, parameter.grad, hidden, transposed)
            filled.update({f"grad.{n}": keep(v).contiguous() for n, v in views})
        elif parameter.requires_grad:
            views = unfused(name, parameter.detach(), hidden, transposed)
            none += [n for n, _ in views]
    return filled, none


def idle_experts(
    model: nn.Module, hidden: int, filled: dict[str, Tensor], none: list[str]
) -> dict[str, Tensor]:
    """Zero gradients of experts that got no token.

    Where experts are single modules, one without a token has no gradient tensor; fused experts have
    zeros there. Both mean the same.
    """
    layers = {name.split(".experts.")[0] for name in filled if ".experts." in name}
    idle = [n for n in none if ".experts." in n and f"grad.{n.split('.experts.')[0]}" in layers]
    loaded = loaded_tensors(model, hidden)
    return {f"grad.{name}": torch.zeros_like(loaded[name], device="cpu") for name in idle}
