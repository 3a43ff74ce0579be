"""Other orders of summation under unchanged code: every matrix product and every mean of a model.

    with SumOrder("pairwise"):
        loss = model(**batch).loss
        loss.backward()

Products are taken where they reach ATen (mm, bmm, addmm), forward and backward alike. A bfloat16
product is summed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PARTS = 4  # of split-K
NARROW = (torch.bfloat16, torch.float16)


def terms(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Column k of a [..., M, K] and row k of b [..., K, N], to be multiplied to [..., M, N]."""
    return a[..., :, k, None], b[..., k, None, :]


def from_the_last(a: Tensor, b: Tensor) -> Tensor:
    """One product after the other, the last one first, each rounded before it is added."""
    total = a.new_zeros(()).expand(*a.shape[:-1], b.shape[-1])
    for k in reversed(range(a.shape[-1])):
        column, row = terms(a, b, k)
        total = total + column * row
    return total.contiguous()


def fused_from_the_last(a: Tensor, b: Tensor) -> Tensor:
    """The same, added with one rounding as a fused multiply-add does.

    From the first term on this is what ATen does with small matrices on x86. A product of two
    float32 is exact in float64; the sum is rounded there first, which changes one result in 2^29.
    """
    total = a.new_zeros((*a.shape[:-1], b.shape[-1]))
    wide, other = a.double(), b.double()
    for k in reversed(range(a.shape[-1])):
        column, row = terms(wide, other, k)
        total = torch.addcmul(total.double(), column, row).float()
    return total


def pairwise(a: Tensor, b: Tensor) -> Tensor:
    """Rounded products, added in pairs, then pairs of pairs."""
    each = a[..., :, :, None] * b[..., None, :, :]
    while each.shape[-2] > 1:
        half = each.shape[-2] // 2
        rest = each[..., 2 * half :, :]
        each = torch.cat((each[..., :half, :] + each[..., half : 2 * half, :], rest), -2)
    return each.sum(-2)


def split_k(a: Tensor, b: Tensor) -> Tensor:
    """ATen's own products of PARTS pieces of the inner axis, added."""
    pieces = zip(a.tensor_split(PARTS, -1), b.tensor_split(PARTS, -2), strict=True)
    total = None
    for x, y in pieces:
        part = torch.matmul(x, y)
        total = part if total is None else total + part
    return total


ORDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "from the last": from_the_last,
    "fused": fused_from_the_last,
    "pairwise": pairwise,
    "split-K": split_k,
}


class SumOrder(TorchDispatchMode):
    """While it is entered, products and means are summed in this order. Throws KeyError if unknown.

    seen: how many sums were replaced.
    """

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = ORDERS[order]
        self.seen = 0

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        self.seen += 1
        if a.dtype in NARROW:
            return self.order(a.float(), b.float()).to(a.dtype)
        return self.order(a, b)

    def mean(self, x: Tensor, keep: bool) -> Tensor:
        ones = x.new_ones((x.shape[-1], 1))
        total = self.product(x.unsqueeze(-2), ones).squeeze(-1) / x.shape[-1]
        return total if keep else total.squeeze(-1)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        floating = isinstance(args[0], Tensor) and args[0].dtype in (torch.float32, *NARROW)
        if floating and func in (aten.mm.default, aten.bmm.default):
            return self.product(*args)
        if floating and func is aten.addmm.default and not kwargs:
            return args[0] + self.product(*args[1:])
        if floating and func is aten.mean.dim and not kwargs and _is_last(args):
            return self.mean(args[0], len(args) > 2 and args[2])
        return func(*args, **kwargs)


def _is_last(args: tuple) -> bool:
    return list(args[1]) in ([-1], [args[0].dim() - 1])
