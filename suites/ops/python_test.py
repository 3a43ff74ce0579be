"""Every op called from Python: torch.library.opcheck on both namespaces, and errors, no crashes."""

from __future__ import annotations

import math
import os
import unittest
from collections.abc import Callable
from dataclasses import dataclass

import torch

SPACES = ("dsv32", "dsv32_simt")
EPS = 1e-6


@dataclass
class Sample:
    """Arguments that an op takes, and arguments that it refuses with a text."""

    good: Callable[[], list[tuple]]
    bad: Callable[[], list[tuple[tuple, str]]]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def bf16(*shape: int) -> torch.Tensor:
    return normal(*shape, dtype=torch.bfloat16)


def integers(count: int, k: int) -> torch.Tensor:
    return torch.arange(k, dtype=torch.int32).expand(count, k).contiguous()


def key_lists(*shape: int, below: int) -> torch.Tensor:
    """Neighbours differ along the last axis."""
    return (torch.arange(math.prod(shape)) % below).reshape(shape).int()


def attention(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """q [2,3,4,12] and kv [2,7,12] of the absorbed form; kv_lora is 8."""
    return normal(2, 3, 4, 12, dtype=dtype), normal(2, 7, 12, dtype=dtype)


def attended(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """dout, out and lse of `attention`."""
    return normal(2, 3, 4, 8, dtype=dtype), normal(2, 3, 4, 8, dtype=dtype), normal(2, 3, 4)


def experts(
    count: int, width: int, hidden: int, make: Callable[..., torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    gate = [make(width, hidden) for _ in range(count)]
    return gate, gate, [make(hidden, width) for _ in range(count)]


def expanded(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """q, k_nope, k_rope and v of the expanded form, 7 keys; `attended` fits its results."""
    return (
        normal(2, 3, 4, 12, dtype=dtype),
        normal(2, 7, 4, 8, dtype=dtype),
        normal(2, 7, 4, dtype=dtype),
        normal(2, 7, 4, 8, dtype=dtype),
    )


SAMPLES: dict[str, Sample] = {
    "rms_norm": Sample(
        good=lambda: [(normal(3, 5, 16), normal(16), EPS), (bf16(2, 7), bf16(7), EPS)],
        bad=lambda: [
            ((normal(3, 16), normal(15), EPS), "rms_norm: weight: expected shape [16], got [15]"),
            ((normal(3, 16), bf16(16), EPS), "rms_norm: weight: expected Float as x"),
        ],
    ),
    "add_rms_norm": Sample(
        good=lambda: [(normal(3, 16), normal(3, 16), normal(16), EPS)],
        bad=lambda: [((normal(3, 16), normal(2, 16), normal(16), EPS), "add_rms_norm: residual:")],
    ),
    "rms_norm_backward": Sample(
        good=lambda: [
            (normal(3, 16), normal(3, 16), normal(16), normal(3).abs()),
            (bf16(3, 16), bf16(3, 16), bf16(16), normal(3).abs(), bf16(3, 16)),
        ],
        bad=lambda: [
            ((normal(3, 16), normal(3, 16), normal(16), normal(4)), "rms_norm_backward: rstd:")
        ],
    ),
    "layer_norm": Sample(
        good=lambda: [
            (normal(3, 5, 16), normal(16), normal(16), EPS),
            (bf16(2, 7), bf16(7), bf16(7), EPS),
        ],
        bad=lambda: [
            ((normal(3, 16), normal(16), normal(15), EPS), "layer_norm: bias: expected shape [16]")
        ],
    ),
    "layer_norm_backward": Sample(
        good=lambda: [(normal(3, 16), normal(3, 16), normal(16), normal(3), normal(3).abs())],
        bad=lambda: [
            (
                (normal(3, 16), normal(3, 16), normal(16), normal(3), normal(4)),
                "layer_norm_backward: rstd: expected shape [3], got [4]",
            )
        ],
    ),
    "rope": Sample(
        good=lambda: [
            (normal(2, 3, 4, 16), normal(2, 3, 8), normal(2, 3, 8), True),
            (bf16(2, 3, 16), normal(2, 3, 4), normal(2, 3, 4), False, True),
        ],
        bad=lambda: [
            (
                (normal(2, 3, 15), normal(2, 3, 8), normal(2, 3, 8), True),
                "rope: x: expected 16 lanes or more",
            )
        ],
    ),
    "hadamard": Sample(
        good=lambda: [(normal(3, 128), 0.5), (bf16(2, 3, 16), 1.0)],
        bad=lambda: [((normal(3, 12), 1.0), "hadamard: x: expected a power of two up to 256")],
    ),
    "swiglu": Sample(
        good=lambda: [(normal(3, 16), normal(3, 16)), (bf16(5), bf16(5))],
        bad=lambda: [((normal(3, 16), normal(3, 8)), "swiglu: up: expected shape [3, 16]")],
    ),
    "swiglu_backward": Sample(
        good=lambda: [(normal(3, 16), normal(3, 16), normal(3, 16))],
        bad=lambda: [
            ((bf16(3, 16), normal(3, 16), normal(3, 16)), "swiglu_backward: dy: expected Float")
        ],
    ),
    "kl_sparse": Sample(
        good=lambda: [
            (
                *(normal(2, 3, 4, 8), normal(2, 5, 8), normal(2, 3, 4), normal(2, 3, 5)),
                *(torch.tensor([1, -1], dtype=torch.int32).expand(2, 3, 2), 0.3),
            )
        ],
        bad=lambda: [
            (
                (
                    *(normal(2, 3, 4, 8), normal(2, 5, 8), normal(2, 3, 4), normal(2, 3, 5)),
                    *(torch.tensor([1, 5], dtype=torch.int32).expand(2, 3, 2), 0.3),
                ),
                "kl_sparse: topk: expected 0 to 4, got 5",
            )
        ],
    ),
    "kl_dense": Sample(
        good=lambda: [
            (
                *(bf16(2, 3, 4, 8), bf16(2, 5, 8), normal(2, 3, 4), normal(2, 3, 5)),
                *(torch.ones(2, 5).bool(), 2, 0.3),
            )
        ],
        bad=lambda: [
            (
                (
                    *(bf16(2, 3, 4, 8), bf16(2, 5, 8), normal(2, 3, 4), normal(2, 3, 4)),
                    *(torch.ones(2, 5).bool(), 2, 0.3),
                ),
                "kl_dense: scores: expected shape [2, 3, 5], got [2, 3, 4]",
            )
        ],
    ),
    "index_scores": Sample(
        good=lambda: [
            (normal(2, 3, 4, 8), normal(2, 5, 8), normal(2, 3, 4), torch.ones(2, 5).bool(), 2),
            (bf16(1, 3, 2, 8), bf16(1, 3, 8), normal(1, 3, 2), torch.ones(1, 3).bool(), 0),
        ],
        bad=lambda: [
            (
                (normal(2, 3, 4, 8), normal(2, 5, 9), normal(2, 3, 4), torch.ones(2, 5).bool(), 2),
                "index_scores: k: expected shape [2, 5, 8], got [2, 5, 9]",
            ),
        ],
    ),
    "index_scores_backward": Sample(
        good=lambda: [
            (
                normal(2, 3, 5),
                *(normal(2, 3, 4, 8), normal(2, 5, 8), normal(2, 3, 4)),
                *(torch.ones(2, 5).bool(), 2),
            )
        ],
        bad=lambda: [
            (
                (
                    normal(2, 3, 4),
                    *(normal(2, 3, 4, 8), normal(2, 5, 8), normal(2, 3, 4)),
                    *(torch.ones(2, 5).bool(), 2),
                ),
                "index_scores_backward: dscores: expected shape [2, 3, 5], got [2, 3, 4]",
            )
        ],
    ),
    "index_scores_backward_sparse": Sample(
        good=lambda: [
            (
                normal(2, 3, 2),
                torch.tensor([1, -1], dtype=torch.int32).expand(2, 3, 2),
                *(normal(2, 3, 4, 8), normal(2, 5, 8), normal(2, 3, 4)),
            )
        ],
        bad=lambda: [
            (
                (
                    normal(2, 3, 2),
                    torch.tensor([1, 5], dtype=torch.int32).expand(2, 3, 2),
                    *(normal(2, 3, 4, 8), normal(2, 5, 8), normal(2, 3, 4)),
                ),
                "index_scores_backward_sparse: topk: expected 0 to 4, got 5",
            )
        ],
    ),
    "select_topk": Sample(
        good=lambda: [(normal(2, 3, 40), 8), (normal(2, 5), 9, True)],
        bad=lambda: [
            ((bf16(2, 5), 3), "select_topk: scores: expected Float, got BFloat16"),
            ((normal(2, 5), 65537), "select_topk: k: expected 1 to 65536, got 65537"),
        ],
    ),
    "route": Sample(
        good=lambda: [(normal(3, 16), normal(16), 4, 2, 4, True, 2.5)],
        bad=lambda: [
            ((normal(3, 16), normal(16), 5, 2, 4, True, 2.5), "route: n_group: expected a divisor"),
            ((normal(3, 16), normal(16), 4, 2, 9, True, 2.5), "route: k: expected 1 to 8, got 9"),
        ],
    ),
    "routing_weights": Sample(
        good=lambda: [(normal(3, 16), integers(3, 4), True, 2.5)],
        bad=lambda: [
            ((normal(3, 3), integers(3, 4), True, 2.5), "routing_weights: experts: expected 0 to 2")
        ],
    ),
    "route_backward": Sample(
        good=lambda: [(normal(3, 4), normal(3, 16), integers(3, 4), False, 2.5)],
        bad=lambda: [
            ((normal(3, 3), normal(3, 16), integers(3, 4), True, 2.5), "route_backward: dweights:")
        ],
    ),
    "moe": Sample(
        good=lambda: [
            (normal(3, 8), integers(3, 2), normal(3, 2), *experts(4, 6, 8, normal)),
            (bf16(3, 8), integers(3, 2), normal(3, 2), *experts(4, 6, 8, bf16)),
        ],
        bad=lambda: [
            ((normal(3, 7), integers(3, 2), normal(3, 2), *experts(4, 6, 8, normal)), "moe: gate:"),
            ((normal(3, 8), integers(3, 2), normal(3, 2), [], [], []), "moe: gate: expected 1"),
        ],
    ),
    "moe_add": Sample(
        good=lambda: [
            (normal(3, 8), normal(3, 8), integers(3, 2), normal(3, 2), *experts(4, 6, 8, normal)),
            (normal(3, 8), bf16(3, 8), integers(3, 2), normal(3, 2), *experts(4, 6, 8, bf16)),
        ],
        bad=lambda: [
            (
                (bf16(3, 8), bf16(3, 8), integers(3, 2), normal(3, 2), *experts(4, 6, 8, bf16)),
                "moe_add: sum: expected Float, got BFloat16",
            )
        ],
    ),
    "moe_backward_add": Sample(
        good=lambda: [
            (normal(3, 8), normal(3, 8), normal(3, 8), integers(3, 2), normal(3, 2))
            + experts(4, 6, 8, normal),
            (normal(3, 8), bf16(3, 8), bf16(3, 8), integers(3, 2), normal(3, 2))
            + experts(4, 6, 8, bf16),
        ],
        bad=lambda: [
            (
                (normal(3, 8), normal(3, 7), normal(3, 8), integers(3, 2), normal(3, 2))
                + experts(4, 6, 8, normal),
                "moe_backward_add: dout: expected shape [3, 8], got [3, 7]",
            )
        ],
    ),
    "moe_backward": Sample(
        good=lambda: [
            (normal(3, 8), normal(3, 8), integers(3, 2), normal(3, 2), *experts(4, 6, 8, normal))
        ],
        bad=lambda: [
            (
                (normal(3, 7), normal(3, 8), integers(3, 2), normal(3, 2))
                + experts(4, 6, 8, normal),
                "moe_backward: dout: expected shape [3, 8], got [3, 7]",
            )
        ],
    ),
    "sparse_mla": Sample(
        good=lambda: [
            (*attention(), key_lists(2, 3, 5, below=7), 0.3, 8),
            (*attention(torch.bfloat16), key_lists(2, 3, 1, below=7), 0.3, 8),
        ],
        bad=lambda: [
            (
                (*attention(), key_lists(2, 3, 5, below=9), 0.3, 8),
                "sparse_mla: topk: expected 0 to 6, got 7",
            ),
            (
                (*attention(), key_lists(2, 2, 5, below=7), 0.3, 8),
                "sparse_mla: topk: expected shape [2, 3, 5], got [2, 2, 5]",
            ),
        ],
    ),
    "dense_mla": Sample(
        good=lambda: [(*attention(), normal(2, 7) > -1, 4, 0.3, 8)],
        bad=lambda: [
            (
                (*attention(), normal(2, 7), 4, 0.3, 8),
                "dense_mla: mask: expected Bool, got Float",
            )
        ],
    ),
    "sparse_mla_backward": Sample(
        good=lambda: [
            (*attended(), *attention(), key_lists(2, 3, 5, below=7), 0.3, 8),
            (
                *attended(torch.bfloat16),
                *attention(torch.bfloat16),
                key_lists(2, 3, 5, below=7),
                0.3,
                8,
            ),
        ],
        bad=lambda: [
            (
                (*attended(), *attention(), key_lists(2, 3, 5, below=7), 0.3, 9),
                "sparse_mla_backward: dout: expected shape [2, 3, 4, 9], got [2, 3, 4, 8]",
            )
        ],
    ),
    "dense_mla_backward": Sample(
        good=lambda: [(*attended(), *attention(), normal(2, 7) > -1, 4, 0.3, 8, True)],
        bad=lambda: [
            (
                (*attended(), *attention(), normal(2, 7) > -1, -4, 0.3, 8),
                "dense_mla_backward: first_query: expected 0 or more, got -4",
            )
        ],
    ),
    "linear_cross_entropy": Sample(
        good=lambda: [(normal(3, 8), normal(11, 8), torch.tensor([4, -100, 10]))],
        bad=lambda: [
            (
                (normal(3, 8), normal(11, 8), torch.tensor([4, -100, 11])),
                "linear_cross_entropy: labels: expected 0 to 10, got 11",
            ),
            (
                (normal(3, 8), normal(11, 7), torch.tensor([4, -100, 1])),
                "linear_cross_entropy: weight: expected shape [11, 8], got [11, 7]",
            ),
        ],
    ),
    "linear_cross_entropy_backward": Sample(
        good=lambda: [
            (normal(), x(3, 8), x(11, 8), torch.tensor([4, -100, 10]), normal(3).double())
            for x in (normal, bf16)
        ],
        bad=lambda: [
            (
                (normal(1), normal(3, 8), normal(11, 8), torch.tensor([4, -100, 1]), normal(3)),
                "linear_cross_entropy_backward: dloss: expected shape [], got [1]",
            )
        ],
    ),
    "embedding_backward": Sample(
        good=lambda: [(normal(3, 8), torch.tensor([4, 0, 4]), 5)],
        bad=lambda: [
            (
                (normal(3, 8), torch.tensor([4, 0, 5]), 5),
                "embedding_backward: ids: expected 0 to 4, got 5",
            )
        ],
    ),
    "masked_mha": Sample(
        good=lambda: [
            (*expanded(), torch.full((2, 3, 1), 5).int(), 0.3),
            (*expanded(torch.bfloat16), torch.full((2, 3, 1), -1).int(), 0.3),
        ],
        bad=lambda: [
            (
                (*expanded(), torch.full((2, 3, 2), 5).int(), 0.3),
                "masked_mha: support: expected shape [2, 3, 1], got [2, 3, 2]",
            )
        ],
    ),
    "masked_mha_backward": Sample(
        good=lambda: [
            (*attended(), *expanded(), torch.full((2, 3, 1), 5).int(), 0.3),
            (
                *attended(torch.bfloat16),
                *expanded(torch.bfloat16),
                torch.full((2, 3, 1), -1).int(),
                0.3,
            ),
        ],
        bad=lambda: [
            (
                (*attended(torch.bfloat16), *expanded(), torch.full((2, 3, 1), 5).int(), 0.3),
                "masked_mha_backward: dout: expected Float as q, got BFloat16",
            )
        ],
    ),
    "support_bits": Sample(
        good=lambda: [(key_lists(2, 3, 5, below=40), 40)],
        bad=lambda: [
            (
                (key_lists(2, 3, 5, below=40), 29),
                "support_bits: topk: expected 0 to 28, got 29",
            )
        ],
    ),
    "visible_bits": Sample(
        good=lambda: [(normal(2, 70) > -1, 3, 60)],
        bad=lambda: [
            ((normal(2, 70) > -1, 3, -1), "visible_bits: first_query: expected 0 or more")
        ],
    ),
    "cache_append": Sample(
        good=lambda: [(normal(2, 5, 8), normal(2, 3, 8), 2), (bf16(2, 5, 7), bf16(2, 1, 7), 0)],
        bad=lambda: [
            (
                (normal(2, 5, 8), normal(2, 3, 8), 3),
                "cache_append: first: expected 0 to 2, got 3",
            )
        ],
    ),
    "adamw_": Sample(
        good=lambda: [
            (
                *([normal(2, 3), normal(4)] for _ in range(3)),
                [normal(2, 3).abs(), normal(4).abs()],
                *(2, 1e-2, 0.9, 0.95, 1e-8, 0.1, normal()),
            )
        ],
        bad=lambda: [
            (
                ([normal(4)], [], [], [], 2, 1e-2, 0.9, 0.95, 1e-8, 0.1, normal()),
                "adamw_: grads: expected 1 tensors, got 0",
            )
        ],
    ),
    "grad_norm": Sample(
        good=lambda: [([normal(2, 3), normal(4)],), ([bf16(5)],)],
        bad=lambda: [(([normal(2), bf16(2)],), "grad_norm: grads: expected Float as grads")],
    ),
    "fp8_dequant": Sample(
        good=lambda: [
            (torch.arange(127, dtype=torch.uint8).view(1, 127), normal(1, 1), torch.bfloat16)
        ],
        bad=lambda: [
            ((normal(1, 2), normal(1, 1), torch.float32), "fp8_dequant: codes: expected Byte"),
            (
                (torch.zeros(1, 256, dtype=torch.uint8), normal(1, 3), torch.float32),
                "fp8_dequant: scales: expected shape [1, 2], got [1, 3]",
            ),
        ],
    ),
    "fp8_quant": Sample(
        good=lambda: [(normal(3, 130),), (bf16(2, 3, 5),)],
        bad=lambda: [((normal(2).double(),), "fp8_quant: x: expected float32 or bfloat16")],
    ),
    "fp8_quant_runs": Sample(
        good=lambda: [(normal(3, 130), 128, True), (bf16(2, 3, 5), 2, False)],
        bad=lambda: [((normal(2), 0, True), "fp8_quant_runs: run: expected 1 or more, got 0")],
    ),
    "fp8_linear": Sample(
        good=lambda: [
            (
                torch.arange(120, dtype=torch.uint8).view(3, 40),
                normal(3, 3),
                torch.arange(80, dtype=torch.uint8).view(2, 40),
                normal(1, 3),
                16,
                16,
            )
        ],
        bad=lambda: [
            (
                (*[torch.zeros(1, 8, dtype=torch.uint8), normal(1, 1)] * 2, 1, 4),
                "fp8_linear: x_scales: expected shape [1, 2], got [1, 1]",
            )
        ],
    ),
}


class Ops(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        torch.ops.load_library(os.environ["DSV32_OPS"])

    def test_every_op_has_a_sample(self) -> None:
        registered = torch._C._dispatch_get_all_op_names()
        for space in SPACES:
            names = {name.split("::")[1] for name in registered if name.startswith(space + "::")}
            self.assertEqual(names, set(SAMPLES), space)

    def test_opcheck(self) -> None:
        for name, space, op in self.ops():
            for arguments in SAMPLES[name].good():
                with self.subTest(op=name, space=space):
                    torch.library.opcheck(op, arguments)

    def test_bad_input_is_an_error_with_a_name(self) -> None:
        for name, space, op in self.ops():
            for arguments, text in SAMPLES[name].bad():
                with self.subTest(op=name, space=space):
                    with self.assertRaises(RuntimeError) as caught:
                        op(*arguments)
                    self.assertIn(text, str(caught.exception))

    @staticmethod
    def ops() -> list[tuple[str, str, torch._ops.OpOverload]]:
        return [
            (name, space, getattr(getattr(torch.ops, space), name).default)
            for name in SAMPLES
            for space in SPACES
        ]


if __name__ == "__main__":
    unittest.main()
