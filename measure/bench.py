"""Times and memory of our implementations beside Hugging Face's, and of each op beside ATen's.

    ci/bench [--case small] [--parts models memory ops growth kernels] [--rounds 2]
             [--repetitions 2] [--json build/bench] [--out docs/performance.md]

Each part is a section of the page and leaves JSON files: models (bench_models of ours against
transformers, taking turns on the same threads), memory (one process per implementation), ops and
growth (bench_ops), kernels (ci/kernels.py). Google Benchmark's files are kept as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench_page as page
import torch
from bench_transformers import Times, memory_of_transformers, release, time_transformers
from synthetic import ROOT, Case, load_cases

PROGRAMS = Path(os.environ.get("DSV32_BENCH", ROOT / "build" / "suites"))
# "kept" is the optimized model that keeps all that its backward pass needs.
OURS = {
    "reference": ("float32",),
    "optimized": ("float32", "bfloat16"),
    "kept": ("float32", "bfloat16"),
}


class Bench:
    """What the command line asks for, and where results go."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.case: Case = load_cases()[arguments.case]
        self.dtypes: list[str] = arguments.dtype
        self.rounds: int = arguments.rounds
        self.repetitions: int = arguments.repetitions
        self.folder: Path = arguments.json

    def keep(self, name: str, found: Any) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        return found

    def run(self, name: str, program: str, *flags: str) -> Any:
        """What one of our programs prints as JSON."""
        command = [str(PROGRAMS / program), "--case", self.case.name, *flags]
        return self.keep(name, json.loads(output_of(command)))


def output_of(command: list[str], accepted: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in accepted:
        raise SystemExit(f"ci/bench: exit {done.returncode}: {' '.join(command)}")
    return done.stdout


def time_ours(bench: Bench, who: str, dtype: str, number: int) -> page.Found:
    flags = [f"--benchmark_filter=^{who} {dtype} ", "--benchmark_format=json"]
    flags += [f"--benchmark_repetitions={bench.repetitions + 1}"]
    printed = bench.run(f"models-{who}-{dtype}-{number}", "bench_models", *flags)
    found: page.Found = {}
    for run in printed["benchmarks"]:
        if run["run_type"] != "iteration" or run["repetition_index"] == 0:
            continue  # the first run allocates
        key = tuple(run["name"].split("/")[0].split(" ", 2))
        times = found.setdefault(key, Times())
        times.add(run["real_time"] / 1000, run["cpu_time"] / 1000, run["loss"])
    return found


def models(bench: Bench) -> str:
    found: page.Found = {}
    for dtype in bench.dtypes:
        for number in range(bench.rounds):
            turn: page.Found = {}
            for who in OURS:
                if dtype in OURS[who]:
                    turn |= time_ours(bench, who, dtype, number)
            theirs = time_transformers(bench.case, dtype, bench.repetitions)
            turn |= {("transformers", dtype, name): times for name, times in theirs.items()}
            for key, times in turn.items():
                found.setdefault(key, Times()).extend(times)
    bench.keep("models", {" ".join(key): vars(times) for key, times in found.items()})
    return page.models(bench.case, found)


def memory(bench: Bench) -> str:
    ours = {
        name: bench.run(f"memory-{who}", "bench_models", "--peak", who)
        for name, who in (("optimized", "optimized"), ("optimized, all kept", "kept"))
    }
    found = ours | {
        "transformers, gradients dropped": memory_of_transformers(bench.case, "drop"),
        "transformers, gradients kept": memory_of_transformers(bench.case, "keep"),
    }
    return page.memory(bench.case, bench.keep("memory", found))


def bench_ops(bench: Bench, part: str) -> list[page.Run]:
    flags = ["--rounds", str(2 * bench.rounds + 1), f"--benchmark_filter=^{part} "]
    return bench.run(part, "bench_ops", *flags, "--benchmark_format=json")["benchmarks"]


def ops(bench: Bench) -> str:
    return page.ops(bench.case, bench_ops(bench, "ops"))


def growth(bench: Bench) -> str:
    return page.growth(bench.case, bench_ops(bench, "growth"))


def kernels(bench: Bench) -> str:
    command = [sys.executable, str(ROOT / "ci" / "kernels.py"), "--json"]
    found = json.loads(output_of(command, accepted=(0, 1)))  # 1: a kernel spills
    return page.kernels(bench.keep("kernels", found))


PARTS = {part.__name__: part for part in (models, memory, ops, growth, kernels)}


def heading() -> str:
    cpu = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    return (
        f"# Performance\n\nMade by `ci/bench` on {cpu}, {threads};\n"
        f"torch {torch.__version__}, transformers {release()}. No figure here is a limit.\n"
    )


def other_sections(out: Path) -> str:
    """What the page tells of runs that are no bench: from this heading on it is written by hand."""
    found = out.read_text() if out.exists() else ""
    at = found.find("\n## Layers of full size\n")
    return found[at:] if at >= 0 else ""


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ci/bench", description=__doc__.split("\n")[0])
    parser.add_argument("--case", default="small", choices=list(load_cases()), metavar="NAME")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=2, help="of whole models in each round")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench", metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: only print")
    arguments = parser.parse_args(words)
    torch.set_num_threads(os.cpu_count() or 1)
    bench = Bench(arguments)
    parts = [part for part in PARTS if part in arguments.parts]
    text = "\n".join([heading(), *(PARTS[part](bench) for part in parts)])
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text + other_sections(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
