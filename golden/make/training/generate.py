"""Makes the goldens of the training suites: real transformers, torch, peft and DeepSpeed.

    .venv-golden/bin/python golden/generate_training.py [--golden NAME ...] [--out DIR]
    .venv-golden/bin/python golden/generate_training.py --check [--golden NAME ...]

NAME is SUITE.CASE; all of them by default. Every golden is made twice, from the checkpoint on,
unless its job says why not; a file is kept only when both are the same bytes. --check writes
nothing: it compares a new run with the file in DIR (compare_training.py says how); exit 1 when they
differ. The files are committed in golden/data/.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import tempfile
from pathlib import Path

# Before torch starts its threads: waiting threads must not burn the other ones' time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import dsv32_dump as dump
import manifest
from generate import DATA, GoldenError
from synthetic import load_cases
from training.compare import differences
from training.run import Job

from training import h5

# Each has JOBS: a list of run.Job.
MODULES = ("training.lm", "training.kl", "training.lora", "training.sharded")


def jobs() -> dict[str, Job]:
    found = [job for module in MODULES for job in importlib.import_module(module).JOBS]
    return {job.name: job for job in found}


def make(job: Job, folder: Path) -> Path:
    """Writes SUITE.CASE.h5 into `folder`."""
    case = load_cases()[job.case]
    names = (f"{job.name}.h5",) if job.once else (f"{job.name}.h5", f"{job.name}.again")
    files = [folder / name for name in names]
    for file in files:
        h5.write(file, job.make(case))
        gc.collect()
    if manifest.sha256(files[0]) != manifest.sha256(files[-1]):
        found = differences(*(h5.read(file) for file in files))
        raise GoldenError(f"{job.name}: two runs gave different bytes: {found or 'rounding'}")
    return files[0]


def check(job: Job, committed: Path) -> list[str]:
    """What a new run does differently; nothing when the bytes are the same."""
    if not committed.is_file():
        raise GoldenError(f"{job.name}: there is no {committed.name} to compare with")
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / committed.name
        h5.write(fresh, job.make(load_cases()[job.case]))
        if fresh.read_bytes() == committed.read_bytes():
            say(f"{job.name}: identical bytes")
            return []
        found = differences(h5.read(committed), h5.read(fresh))
        if not found:
            say(f"{job.name}: other bytes, same decisions and values")
        return [f"{job.name}: {line}" for line in found]


def step(job: Job, arguments: argparse.Namespace) -> list[str]:
    target = arguments.out / f"{job.name}.h5"
    if arguments.check:
        return check(job, target)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out, prefix=".new-") as folder:
        os.replace(make(job, Path(folder)), target)
    once = f", made once: {job.once}" if job.once else ""
    say(f"{job.name}: {target.stat().st_size} bytes{once}")
    return []


def say(text: str) -> None:
    print(f"generate_training: {text}", file=sys.stderr, flush=True)


def parse_arguments(words: list[str] | None, names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="generate_training.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--golden", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--out", type=Path, default=DATA, metavar="DIR")
    parser.add_argument("--check", action="store_true", help="compare a new run with DIR")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    known = jobs()
    arguments = parse_arguments(words, list(known))
    try:
        found = [line for name in arguments.golden for line in step(known[name], arguments)]
        if not arguments.check:
            manifest.update(arguments.out)
    except (GoldenError, dump.DumpError) as error:
        say(str(error))
        return getattr(error, "code", 4)
    except OSError as error:
        say(f"{error.filename}: {error.strerror}")
        return 6
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
