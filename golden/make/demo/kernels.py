"""In place of the demo's three GPU kernels and of the Hadamard package: plain torch.

The formulas are those of docs/spec.md 1, fp8 mode. `Kernels` binds them to a mode and to the names
and arguments under which the demo calls them; the functions below stand alone.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

RUN = 128  # lanes that share a scale
LARGEST = 448.0  # of e4m3
EPS = 1e-4  # a run's largest magnitude counts as at least this
CODE = torch.float8_e4m3fn


def power_of_two_above(x: Tensor) -> Tensor:
    """The smallest power of two that is not below x > 0, float32."""
    mantissa, exponent = torch.frexp(x)  # x = mantissa * 2^exponent, mantissa in [1/2, 1)
    exact = mantissa == 0.5
    return torch.ldexp(torch.ones_like(x), torch.where(exact, exponent - 1, exponent))


def quantise(x: Tensor, ue8m0: bool, run: int = RUN) -> tuple[Tensor, Tensor]:
    """Q(x): e4m3 codes in the shape of x, and float32 scales [..., ceil(last / run)].

    Runs of `run` lanes along the last axis; a shorter row or rest is a run of its own.
    """
    pieces = x.float().split(run, dim=-1)
    codes, scales = zip(*(_quantise_run(piece, ue8m0) for piece in pieces), strict=True)
    return torch.cat([c.view(torch.uint8) for c in codes], dim=-1).view(CODE), torch.cat(scales, -1)


def _quantise_run(x: Tensor, ue8m0: bool) -> tuple[Tensor, Tensor]:
    largest = x.abs().amax(-1, keepdim=True).clamp_min(EPS)
    scale = largest * (1 / LARGEST)  # a product in float32: a quotient has other last bits
    scale = power_of_two_above(scale) if ue8m0 else scale
    return (x / scale).clamp(-LARGEST, LARGEST).to(CODE), scale


def restore(codes: Tensor, scales: Tensor, run: int = RUN) -> Tensor:
    """code * scale, float32."""
    parts = codes.float().split(run, dim=-1)
    return torch.cat([part * scales[..., i : i + 1] for i, part in enumerate(parts)], dim=-1)


def product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., K] codes times [N, K] codes: each block of 128 summed, scaled, added in float32.

    a_scale: [..., ceil(K / 128)]. b_scale: [ceil(N / 128), ceil(K / 128)].
    """
    N, K = b.shape
    rows = b_scale.repeat_interleave(RUN, dim=0)[:N]
    total = torch.zeros(*a.shape[:-1], N, dtype=torch.float32)
    for i, start in enumerate(range(0, K, RUN)):
        block = slice(start, start + RUN)
        part = a[..., block].float() @ b[:, block].float().T
        total += part * (a_scale[..., i : i + 1] * rows[:, i])
    return total.to(dtype)


def hadamard(x: Tensor, scale: float) -> Tensor:
    """x H * scale along the last axis, H the Sylvester matrix; float32 sums, dtype of x.

    Throws ValueError when the axis is no power of two.
    """
    size = x.shape[-1]
    if size & (size - 1):
        raise ValueError(f"hadamard: last axis: expected a power of two, got {size}")
    y = x if x.dtype == torch.float64 else x.float()
    step = 1
    while step < size:
        pairs = y.reshape(*x.shape[:-1], size // (2 * step), 2, step)
        a, b = pairs.unbind(-2)
        y = torch.stack((a + b, a - b), dim=-2).reshape(x.shape)
        step *= 2
    return (y * scale).to(x.dtype)


def index_scores(q: Tensor, weights: Tensor, k: Tensor, k_scale: Tensor) -> Tensor:
    """[B,S,H,D], [B,S,H], [B,T,D], [B,T] to [B,S,T] float32: relu, head weights, key scale."""
    match = torch.einsum("bshd,btd->bsht", q.float(), k.float()).relu()
    return (match * weights[..., None]).sum(2) * k_scale[:, None, :]


def quantise_weight(value: Tensor, ue8m0: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A synthetic FP8 weight (docs/formats.md 7) of a [rows, columns] value of section 1.

    Codes, scales [ceil(rows / 128), ceil(columns / 128)], and the values that they stand for.
    """
    rows, columns = (math.ceil(n / RUN) for n in value.shape)
    codes = torch.empty(value.shape, dtype=CODE)
    scales = torch.empty(rows, columns, dtype=torch.float32)
    dequantised = torch.empty_like(value)
    for r in range(rows):
        for c in range(columns):
            block = (slice(r * RUN, (r + 1) * RUN), slice(c * RUN, (c + 1) * RUN))
            x = value[block] * 2.0 ** ((3 * r + 2 * c) % 5 - 3)
            largest = x.abs().amax()
            scale = largest / LARGEST if largest > 0 else torch.ones_like(largest)
            scale = power_of_two_above(scale) if ue8m0 else scale
            codes[block] = (x / scale).to(CODE)
            scales[r, c], dequantised[block] = scale, codes[block].float() * scale
    return codes, scales, dequantised


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The functions that the demo imports, under its names and with its arguments.

    quantised: False leaves values as they are, with scales of 1.
    """

    quantised: bool

    def act_quant(
        self, x: Tensor, block_size: int = RUN, scale_fmt: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Codes and scales. block_size counts for nothing: a row shorter than 128 is one run."""
        if self.quantised:
            return quantise(x, scale_fmt is not None)
        return x, torch.ones(*x.shape[:-1], math.ceil(x.shape[-1] / RUN), dtype=torch.float32)

    def fp8_gemm(self, a: Tensor, a_s: Tensor, b: Tensor, b_s: Tensor) -> Tensor:
        return product(a, a_s, b, b_s, torch.get_default_dtype())

    def fp8_index(self, q: Tensor, q_s: Tensor, k: Tensor, k_s: Tensor) -> Tensor:
        return index_scores(q, q_s.squeeze(-1), k, k_s.squeeze(-1))

    def hadamard_transform(self, x: Tensor, scale: float) -> Tensor:
        return hadamard(x, scale)
