"""Times our implementations and real transformers on one case, taking turns, on the same threads.

    ci/bench [--case small] [--rounds 2] [--repetitions 3] [--out docs/performance.md]

All hold their weights before the clock starts and give the loss; the losses are printed, so that a
glance tells that they computed the same. Ours run in build/suites/bench_models (Google Benchmark).
The reference's backward pass computes each layer's forward pass a second time, because it holds one
layer at a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dump
import torch
from calibrate import reseed
from synthetic import ROOT, Case, load_cases

PROGRAM = Path(os.environ.get("DSV32_BENCH", ROOT / "build" / "suites" / "bench_models"))
OURS = {"reference": ("float32", "float64"), "optimized": ("float32", "bfloat16")}
PASSES = ("forward", "forward and backward")


@dataclasses.dataclass
class Times:
    """Seconds of one implementation in one dtype and pass, on the clock and of all processors."""

    clock: list[float] = dataclasses.field(default_factory=list)
    work: list[float] = dataclasses.field(default_factory=list)
    loss: float = 0.0

    def add(self, clock: float, work: float, loss: float) -> None:
        self.clock.append(clock)
        self.work.append(work)
        self.loss = loss


Table = dict[tuple[str, str, str], Times]  # (implementation, dtype, pass)


def live_model(case: Case, dtype: str) -> torch.nn.Module:
    """transformers' own model with the case's weights."""
    transformers = dump.import_transformers(None)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(case.config))
        config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=getattr(torch, dtype)
    )
    model.set_experts_implementation("eager")
    reseed(model, case, case.seed)
    return model


def time_transformers(
    model: torch.nn.Module, batch: dict[str, Any], backward: bool
) -> tuple[float, float, float]:
    model.train(backward)
    model.zero_grad(set_to_none=True)
    start, work = time.perf_counter(), time.process_time()
    with torch.set_grad_enabled(backward):
        loss = model(**batch, use_cache=False).loss
        if backward:
            loss.backward()
    return time.perf_counter() - start, time.process_time() - work, float(loss.detach())


def bench_transformers(case: Case, dtype: str, repetitions: int, table: Table) -> None:
    model = live_model(case, dtype)
    arrays = dump.make_batch(case.fields(), case.config["vocab_size"])
    batch = {name: torch.from_numpy(value) for name, value in arrays.items()}
    for name in PASSES:
        times = table.setdefault(("transformers", dtype, name), Times())
        time_transformers(model, batch, name != "forward")  # the first run allocates
        for _ in range(repetitions):
            times.add(*time_transformers(model, batch, name != "forward"))


def bench_ours(who: str, case: Case, dtype: str, repetitions: int, table: Table) -> None:
    command = [str(PROGRAM), "--case", case.name, f"--benchmark_filter=^{who} {dtype} "]
    command += [f"--benchmark_repetitions={repetitions + 1}", "--benchmark_format=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seen: dict[str, int] = {}
    for run in json.loads(done.stdout)["benchmarks"]:
        if run["run_type"] != "iteration":
            continue
        words = run["name"].split("/")[0]
        seen[words] = seen.get(words, 0) + 1
        if seen[words] == 1:
            continue  # the first run allocates
        times = table.setdefault(tuple(words.split(" ", 2)), Times())
        times.add(run["real_time"] / 1000, run["cpu_time"] / 1000, run["loss"])


def machine() -> str:
    cpu = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    return f"{cpu}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"


def markdown(case: Case, table: Table) -> str:
    release = dump.import_transformers(None).__version__
    lines = [
        "# Performance",
        "",
        f"Made by `ci/bench`: case `{case.name}` (B {case.B}, S {case.S}), medians in seconds,",
        "eager attention and experts of transformers.",
        f"{machine()}; torch {torch.__version__}, transformers {release}.",
        "Weights are resident, the loss is computed, all sides take turns. The reference",
        "computes each layer's forward pass twice when it makes gradients, to hold only one.",
        "`work` is the time of all processors: it hardly depends on what else the machine does.",
        "",
        "| ours | dtype | pass | measure | seconds | transformers | quotient | runs | losses |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (who, dtype, name), ours in table.items():
        theirs = table.get(("transformers", dtype, name))
        if who in OURS and theirs is not None:
            lines += [line([who, dtype, name, what], ours, theirs) for what in ("clock", "work")]
    return "\n".join(lines) + "\n"


def line(cells: list[str], ours: Times, theirs: Times) -> str:
    a, b = (statistics.median(getattr(times, cells[-1])) for times in (ours, theirs))
    cells = [*cells, f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}x", str(len(ours.clock))]
    return "| " + " | ".join([*cells, f"{ours.loss:.6f}, {theirs.loss:.6f}"]) + " |"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ci/bench", description=__doc__.split("\n")[0])
    parser.add_argument("--case", default="small", choices=list(load_cases()), metavar="NAME")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: only print")
    arguments = parser.parse_args(words)
    torch.set_num_threads(os.cpu_count() or 1)
    case, table = load_cases()[arguments.case], {}
    for dtype in arguments.dtype:
        for _ in range(arguments.rounds):
            for who in OURS:
                if dtype in OURS[who]:
                    bench_ours(who, case, dtype, arguments.repetitions, table)
            bench_transformers(case, dtype, arguments.repetitions, table)
    text = markdown(case, table)
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
