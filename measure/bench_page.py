"""The page that bench.py writes: a section per part, made out of what the programs measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from agreement import limit
from bench_transformers import Times
from synthetic import Case

# Rows of the table of growth that are sums of others.
FORWARD = ("index_scores", "select_topk", "sparse_mla")
LAYER = {"forward": FORWARD, "forward and backward": (*FORWARD, "sparse_mla_backward")}

Found = dict[tuple[str, str, str], Times]  # (implementation, dtype, pass)
Run = dict[str, Any]  # one benchmark of Google Benchmark's JSON

MODELS = """## Whole models

Case `{case.name}` (B {case.B}, S {case.S}), medians in seconds, eager attention and experts of
transformers. Weights are resident in the dtype of the run, the loss is computed, all sides take
turns. `optimized` is the model as users run it: it keeps the input of each layer and computes its
forward pass a second time for the gradients, as the reference does; `kept` keeps all that its
backward pass needs, as transformers does. `work` is the time of all processors: it hardly depends
on what else the machine does.
"""

ORACLE = """## The oracle

Time of the processors, medians; on the clock only where it says so. Weights and products run in one
thread, in turns. `weights made`: one tensor of 2048 x 1024, with the memory that the system hands
out for it; `weights copied`: the same tensor out of memory that is there, the bound of whatever
writes as much; `weights blocks`: the random words of as many values, in the cache.

{weights}
Products in float64 in GFLOP/s of one core, the second operand stored by columns, by torch and by
OpenBLAS (`scipy-openblas32`). A process that has large ones times the first size once with both and
takes OpenBLAS unless torch is clearly faster; `DSV32_FLOAT64_BLAS=torch` or `openblas` decides for
all of them, and reports name what was used under `float64 products`. Verdicts are the same.

{products}
The float64 reference on `{case.name}`, in seconds, with either library:

{passes}"""

MEMORY = """## Peak memory

One forward and backward pass of `{case.name}` in float32, each in a process of its own, in MiB.
`before`: resident when the weights are made, a model of the case `tiny` has run (so that the code
is in memory) and free memory has gone back; `peak`: the highest until the end of the pass (VmHWM,
reset before it). `above` = peak - before - gradients kept. Ours and `dropped` let go of each
gradient as soon as it is made. `kept` has all of them at the end; not all of them exist at its
peak, so that taking them off favours transformers.
"""

OPS = """## Ops

CPU kernels on the sizes of `{case.name}`, medians in milliseconds. `ATen`: the same math in ATen
ops, as eager PyTorch has it (attention over every pair of query and key, hidden ones masked); for
a backward op autograd of that, which has kept what the forward pass made, while ours makes it
again. `machine`: the useful rate as a part of what the machine did in the same seconds. For FLOPs
that is a matrix product of 2048 x 2048 x 2048 in the same dtype, by ATen's matmul or by oneDNN,
which is faster where MKL does not know the CPU's widest vectors:
{ceilings}.
For bytes it is a copy of as many, from and to memory that is there; where they are few, the start
of a second thread is most of its time. Useful: selected keys, causal pairs, routed tokens; each
argument read once, each result written once; the formulas stand with the cases
(`suites/bench_*_ops.cpp`). `apart`: norm of the difference between the two results over the norm
of one; -: the ATen ops give another layout.
"""

GROWTH = """## Growth in S

The ops of one attention layer of `{case.name}`, one sequence, float32: microseconds per token, and
the last over the first. With top-k {k} a query meets {keys} keys on average, so that the
time of attention and of gradients of selected keys grows linearly in S but for that: per useful
FLOP it stays. `index_scores` scores every visible key and `select_topk` reads all scores: these two
are quadratic by nature, and their time per token grows with S. The sums are those of a layer under
the LM loss, which has no gradient for the indexer.
"""

KERNELS = """## Kernels

What ptxas gives each CUDA kernel on sm_90a (`ci/kernels.py`): {count} kernels, spilling: {spilled}.
Shared memory is the static part; launchers ask for more where a tile needs it. These kernels were
compiled, not run on a GPU.
"""


def table(head: str, rows: Iterable[Iterable[Any]]) -> str:
    """head: the names of the columns, with a bar between."""
    names = head.split("|")
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in (names, *rows)]
    rule = "|" + "---|" * len(names)
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def models(case: Case, found: Found) -> str:
    rows = []
    for (who, dtype, name), ours in found.items():
        theirs = found[("transformers", dtype, name)]
        for measure in ("clock", "work"):
            if who != "transformers":
                rows.append([who, dtype, name, measure, *ours.beside(theirs, measure)])
    head = "ours|dtype|pass|measure|seconds|transformers|quotient|runs|losses"
    return MODELS.format(case=case) + "\n" + table(head, rows)


def medians(parts: list[Run], key: str) -> dict[str, tuple[float, str]]:
    """Of each benchmark: the median over its repetitions, and its label."""
    found: dict[str, list[Run]] = {}
    for run in parts:
        if run["run_type"] == "iteration" and key in run:
            found.setdefault(run["run_name"], []).append(run)
    return {
        name: (statistics.median(run[key] for run in runs), runs[0].get("label", ""))
        for name, runs in found.items()
    }


def oracle(case: Case, parts: list[Run], passes: dict[str, Found]) -> str:
    made = medians(parts, "items_per_second")
    weights = [[name, f"{rate / 1e9:.2f}"] for name, (rate, _) in made.items()]
    rates = medians(parts, "operations")
    products = []
    for name, (rate, size) in rates.items():
        _, what, library = name.split(" ")
        if library == "torch" and (other := rates.get(f"product {what} openblas")):
            cells = (f"{rate / 1e9:.1f}", f"{other[0] / 1e9:.1f}", f"{other[0] / rate:.2f}x")
            products.append([what, size, *cells])
    rows = []
    for key, ours in passes["openblas"].items():
        for measure in ("clock", "work"):
            rows.append([key[2], measure, *ours.beside(passes["torch"][key], measure)])
    return ORACLE.format(
        case=case,
        weights=table("what|billion values per second", weights),
        products=table("product|size|torch|OpenBLAS|quotient", products),
        passes=table("pass|measure|OpenBLAS|torch|quotient|runs|losses", rows),
    )


def memory(case: Case, found: dict[str, dict[str, int]]) -> str:
    def above(sizes: dict[str, int]) -> int:
        return sizes["peak"] - sizes["before"] - sizes.get("gradients", 0)

    rows = []
    for who, sizes in found.items():
        shown = [*(sizes.get(key, 0) for key in ("weights", "before", "peak", "gradients"))]
        cells = [f"{size / 2**20:.0f}" for size in (*shown, above(sizes))]
        rows.append([who, *cells, f"{above(sizes) / above(found['optimized']):.2f}x"])
    head = "who|weights|before|peak|gradients kept|above|above, to ours"
    return MEMORY.format(case=case) + "\n" + table(head, rows)


def words_of(run: Run) -> list[str]:
    """`ops rope half-split bfloat16/iterations:5/manual_time` -> its words before the bar."""
    return run["name"].split("/")[0].split(" ")


def number(value: float) -> str:
    """Three digits or more, no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def op_row(run: Run) -> list[str]:
    _, *name, dtype = words_of(run)
    apart = run["difference"]
    if not apart <= limit("bench.op"):
        raise SystemExit(f"ci/bench: {' '.join(name)} {dtype}: differs from ATen by {apart:.2g}")
    work, unit = (run["flops"], "GFLOP/s") if run["flops"] else (run["bytes"], "GB/s")
    rate = work / run["op"]
    return [
        *(" ".join(name), dtype, run["label"]),
        *(number(1000 * run[side]) for side in ("op", "aten")),
        *(f"{run['aten'] / run['op']:.2f}x", f"{number(rate / 1e9)} {unit}"),
        *(f"{rate / run['machine']:.0%}", f"{apart:.0e}" if apart >= 0 else "-"),
    ]


def ceiling(run: Run) -> str:
    best, matmul = (number(run[key] / 1e9) for key in ("machine", "matmul"))
    return f"{best} GFLOP/s in {words_of(run)[-1]} (matmul {matmul})"


def ops(case: Case, runs: list[Run]) -> str:
    products = {words_of(run)[-1]: run for run in runs if run["flops"]}
    ceilings = "; ".join(map(ceiling, products.values()))
    head = "op|dtype|size|ours|ATen|quotient|rate|machine|apart"
    return OPS.format(case=case, ceilings=ceilings) + "\n" + table(head, map(op_row, runs))


def growth_row(
    name: str, lengths: list[int], seconds: list[float], flops: list[float]
) -> list[str]:
    def grown(amounts: list[float]) -> str:
        first, *_, last = (each / amount for each, amount in zip(seconds, amounts, strict=True))
        return f"{last / first:.2f}x"

    per_token = [f"{1e6 * each / s:.1f}" for each, s in zip(seconds, lengths, strict=True)]
    return [name, *per_token, grown(lengths), grown(flops) if flops[0] else "-"]


def growth(case: Case, runs: list[Run]) -> str:
    found: dict[str, dict[int, Run]] = {}
    for run in runs:
        _, name, length = words_of(run)
        found.setdefault(name, {})[int(length)] = run
    lengths = sorted(next(iter(found.values())))
    seconds = {name: [runs[length]["op"] for length in lengths] for name, runs in found.items()}
    rows = []
    for name, runs_of in found.items():
        flops = [runs_of[length]["flops"] for length in lengths]
        rows.append(growth_row(name, lengths, seconds[name], flops))
    for name, parts in LAYER.items():
        if all(part in seconds for part in parts):
            sums = [sum(each) for each in zip(*(seconds[part] for part in parts), strict=True)]
            rows.append(growth_row(name, lengths, sums, [0] * len(lengths)))
    k = case.config["index_topk"]
    means = [sum(min(i, k) for i in range(1, length + 1)) / length for length in lengths]
    keys = ", ".join(f"{mean:.0f}" for mean in means)
    head = "|".join(["op", *(f"S {length}" for length in lengths), "per token", "per useful FLOP"])
    return GROWTH.format(case=case, k=k, keys=keys) + "\n" + table(head, rows)


def kernels(found: list[dict[str, Any]]) -> str:
    spilled = sum(1 for kernel in found if kernel["spills"]) or "none"
    rows = [
        [k["file"], f"`{k['kernel']}`", *(k[key] for key in ("registers", "shared", "stack"))]
        + [k["spills"]]
        for k in found
    ]
    head = "file|kernel|registers|shared, bytes|stack, bytes|spilled, bytes"
    return KERNELS.format(count=len(found), spilled=spilled) + "\n" + table(head, rows)
