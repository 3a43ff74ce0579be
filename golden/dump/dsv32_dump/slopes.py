"""The gradient of the objective with respect to each raw value that a recorder kept.

A hook on the live tensor catches it while the backward pass runs; what is caught has the layout of
the raw value, so the taps are made from it in the same way (slope_taps.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from .tensors import keep


@dataclasses.dataclass(frozen=True)
class Slope:
    """A live tensor, and the way from its gradient to that of the raw value."""

    tensor: Tensor
    convert: Callable[[Tensor], Tensor] = lambda gradient: gradient


class Slopes:
    """Gradients by the key of the raw value.

    found: what back-propagation left there. cut: keys of floating values that are in no graph.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[int, str], Tensor] = {}
        self.cut: set[tuple[int, str]] = set()

    def watch(self, key: tuple[int, str], slope: Slope) -> None:
        """From now on the gradient of this tensor is kept; one put later takes its place."""
        self.found.pop(key, None)
        self.cut.discard(key)
        if not slope.tensor.is_floating_point():
            return
        if not slope.tensor.requires_grad:
            self.cut.add(key)
            return

        def caught(gradient: Tensor) -> None:
            self.found[key] = keep(slope.convert(gradient))

        slope.tensor.register_hook(caught)
