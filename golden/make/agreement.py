"""The limits of everything that Python judges: `python golden/make/agreement.py` prints them.

The limits of dsv32-verify itself are in harness/judge/limits.cpp. A row says which check, what is
measured, the limit, and what it is taken from; no other Python file holds one.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One limit. A value that is not <= limit, such as NaN, does not agree."""

    check: str
    metric: str
    limit: float
    basis: str


LIMITS = (
    # Two files of one golden, a new run against the committed one.
    Row(
        "golden.value",
        "norm of the difference / norm",
        8e-6,
        "two float32 runs of one model, each within 4e-6 of the exact value",
    ),
    Row(
        "golden.series",
        "difference / value, first 3 steps",
        8e-6,
        "as golden.value; seen from starts that differ by one ulp: 5e-7",
    ),
    Row(
        "golden.parameter",
        "move of norm or projection / norm, first 3 steps",
        5e-5,
        "AdamW divides a gradient by its own size: where that is rounding noise, an element moves "
        "by the learning rate in either direction; seen from starts that differ by one ulp: 1.3e-5",
    ),
    # dump on real code, against the plain model in float64 under the same decisions.
    Row(
        "dump.value",
        "norm of the difference / norm",
        4e-6,
        "float32 code against float64, every tap and gradient of the tiny cases",
    ),
    Row(
        "dump.slope",
        "difference / value",
        1e-6,
        "a central difference over 2^-20 in float64: an error of second order; not measured",
    ),
    Row(
        "dump.two_runs",
        "norm of the difference / norm",
        8e-6,
        "two float32 backends, each within dump.value of the exact value",
    ),
    Row(
        "dump.probability",
        "absolute difference",
        2e-6,
        "33 float32 roundings of 6e-8; seen 2.4e-7",
    ),
    Row(
        "dump.hadamard",
        "absolute difference",
        1e-15,
        "eight float64 terms of size 1/8: a few ulps of 1",
    ),
    # The official demo against docs/spec.md, before a trace of it may be called golden.
    Row(
        "demo.whole",
        "norm of the difference / norm",
        2e-6,
        "a float32 run of two layers against float64 under its decisions; seen 1.1e-6",
    ),
    Row(
        "demo.absorbed",
        "norm of the difference / norm",
        4e-6,
        "two float32 runs, each within demo.whole of the exact value; seen 1.3e-6",
    ),
    Row(
        "demo.bits",
        "share of bf16 values of a tap that are other bits, two values free",
        1e-3,
        "sums in another order: a float32 last bit decides a tie in bf16; seen 2.4e-4",
    ),
    Row(
        "demo.wide",
        "norm of the difference / norm",
        1e-4,
        "a float32 tap of bf16 inputs; an expert output that falls to the other neighbour moves "
        "moe.routed: seen 3.2e-6; elsewhere 9.3e-8",
    ),
    Row(
        "demo.head",
        "norm of the difference / norm",
        1e-6,
        "one row of logits by the demo, and by its head on all rows: float32 sums of 64 to 256",
    ),
    Row(
        "demo.product",
        "norm of the difference / norm",
        1e-6,
        "two blocks of 128 float32 terms against float64",
    ),
    # The training goldens in themselves.
    Row(
        "golden.merged_lora",
        "norm of the difference / norm",
        8e-6,
        "logits by adapters and merged are two float32 runs of one model",
    ),
    Row(
        "golden.sharded_loss",
        "largest difference / largest value",
        8e-6,
        "DeepSpeed and one process are two float32 runs of one model",
    ),
    Row(
        "golden.sharded_norm",
        "largest difference / largest value",
        3e-4,
        "torch sums the squares of a float32 tensor in float32, DeepSpeed in float64: seen 9.5e-5 "
        "on an embedding of 10 million values",
    ),
    Row(
        "golden.descent",
        "mean of the last 4 / mean of the first 4",
        0.6,
        "a loss that falls; seen at most 0.48",
    ),
    Row(
        "golden.band",
        "distance from the band's mean / deviation",
        6,
        "a clean run against the spread of 64, largest over its steps; seen 1.6",
    ),
    Row(
        "band.orthonormal",
        "absolute difference",
        1e-12,
        "float64 singular vectors",
    ),
    Row(
        "band.direction",
        "1 - |cosine|",
        1e-3,
        "a direction planted with a thousand times the noise",
    ),
    Row(
        "start.balance",
        "distance of the share of raised values from 1/2",
        0.05,
        "6400 fair signs: 8 standard deviations",
    ),
    Row(
        "identity",
        "difference / value, or absolute near 0",
        1e-12,
        "two float64 evaluations of one formula in a few thousand operations",
    ),
    # Real peft and this repository's adapters on one model.
    Row(
        "peft.logits",
        "norm of the difference / norm",
        1e-5,
        "float32 logits of two correct models under equal decisions",
    ),
    # ci/bench.
    Row(
        "bench.op",
        "norm of the difference / norm",
        0.05,
        "an op and its composition of ATen ops that are further apart do not compute the same",
    ),
)
BY_CHECK = {row.check: row.limit for row in LIMITS}


def limit(check: str) -> float:
    """The limit of a check. An unknown name is a KeyError, never a default."""
    return BY_CHECK[check]


def table() -> str:
    """The rows as text, for people."""
    return "\n".join(f"{r.check:20} {r.limit:<8g} {r.metric}: {r.basis}" for r in LIMITS)


if __name__ == "__main__":
    print(table())
