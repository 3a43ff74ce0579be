"""Measures how far correct code is from the limits, and wrong code beyond them.

    ci/calibrate [--runs 3000] [--minutes M] [--mlx-python PYTHON] [--out docs/calibration.md]

Real transformers in several releases, backends and orders of summation, other engines and our own
models run over cases and seeds; dsv32-verify judges each as a candidate. All are correct, so every
failure is a false alarm. Of every run the largest share of each limit is kept. Then every bug of
the catalogue is planted: by how much is it beyond its limit?

Finished chunks stay in build/calibration/ and are used again while program and sources are the
same (--minutes 0: the page of what is there); trace files with an alarm stay in
build/calibration/alarms/.
Exit codes: 0 no false alarm · 1 false alarms · 5 no run · 6 program or environment absent.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibration import judging, mutants, page
from calibration.plan import CHUNK, Chunk, Source, chunks, sources
from calibration.workers import Failure, Workers
from dsv32_dump.environment import package_sha256
from synthetic import ROOT

KEPT = ROOT / "build" / "calibration"
CODE = ("measure/calibration/*.py", "golden/make/synthetic.py", "integrations/engines/*.py")


def fingerprint(size: int) -> str:
    """Of everything that a stored chunk depends on; the size of chunks decides their seeds."""
    total = hashlib.sha256(judging.VERIFY.read_bytes() + str(size).encode())
    for file in itertools.chain(*(sorted(ROOT.glob(pattern)) for pattern in CODE)):
        if file.name not in ("page.py", "mutants.py"):
            total.update(file.read_bytes())
    total.update(package_sha256().encode())
    return total.hexdigest()


def write(chunk: Chunk, workers: Workers, folder: Path) -> None:
    """The trace files of a chunk. Throws Failure when one could not be written."""
    worker = workers.get(chunk.source.python, chunk.source.words)
    for seed in chunk.seeds:
        file = str(folder / f"{seed}.safetensors")
        worker.write({"case": chunk.case, "seed": seed, "file": file} | chunk.source.job)


def finish(file: Path, key: str, chunk: Chunk, folder: Any) -> dict[str, Any]:
    with folder:
        result = judging.distil(chunk, judging.judge(chunk, Path(folder.name)))
        if result["alarms"]:
            judging.keep_alarms(chunk, result["alarms"], Path(folder.name), KEPT / "alarms")
    result |= {"key": key}
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    partial.replace(file)
    return result


def count(results: list[dict[str, Any]]) -> int:
    return sum(page.runs_of(results).values())


def stored(key: str) -> Iterator[dict[str, Any]]:
    for file in sorted(KEPT.glob("*.json")):
        result = json.loads(file.read_text())
        if result.get("key") == key:
            yield result


def measure(found: list[Source], runs: int, end: float, size: int) -> list[dict[str, Any]]:
    """Chunks until there are so many runs or the time is over; all that are stored by then.

    One chunk is written while dsv32-verify judges the one before.
    """
    key, workers = fingerprint(size), Workers()
    KEPT.mkdir(parents=True, exist_ok=True)
    try:
        run_chunks(chunks(found, size), workers, key, runs, end)
    finally:
        workers.close()
    return list(stored(key))


def run_chunks(plan: Iterator[Chunk], workers: Workers, key: str, runs: int, end: float) -> None:
    results: list[dict[str, Any]] = []
    pending: list[concurrent.futures.Future] = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for chunk in plan:
            while len(pending) > 1 or (pending and pending[0].done()):
                results.append(pending.pop(0).result())
                say(f"{count(results)} runs, {len(page.alarms_of(results))} alarms")
            if count(results) >= runs or time.monotonic() > end:
                break
            file = KEPT / f"{chunk.name}.json"
            kept = json.loads(file.read_text()) if file.is_file() else {}
            if kept.get("key") == key:
                results.append(kept)
                continue
            folder = tempfile.TemporaryDirectory(dir=KEPT)
            write(chunk, workers, Path(folder.name))
            pending.append(pool.submit(finish, file, key, chunk, folder))
        for future in pending:
            future.result()


def say(text: str) -> None:
    print(f"calibrate: {text}", file=sys.stderr, flush=True)


def available(mlx_python: Path | None) -> tuple[list[Source], list[str]]:
    """The sources whose environments are here, and a line for each that is not."""
    here, absent = [], []
    for source in sources(mlx_python):
        if source.python.is_file():
            here.append(source)
        else:
            absent.append(f"{source.name}: {source.python} is absent")
    if mlx_python is None:
        absent.append("mlx-lm: --mlx-python was not given")
    return here, absent


def short(
    results: list[dict[str, Any]], planted: list[dict[str, Any]], arguments: argparse.Namespace
) -> list[str]:
    """What the time was too short for."""
    lines = []
    if count(results) < arguments.runs:
        lines.append(f"{arguments.runs - count(results)} of {arguments.runs} runs: time was over")
    lacking = len(mutants.listed()) - len(planted)
    if lacking and not arguments.no_mutants:
        lines.append(f"{lacking} bugs of the catalogue: time was over")
    return lines


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ci/calibrate", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=3000, metavar="N")
    parser.add_argument("--minutes", type=float, default=1e6, metavar="M", help="begin none later")
    parser.add_argument("--mlx-python", type=Path, metavar="PYTHON", help="one that has mlx-lm")
    parser.add_argument("--chunk", type=int, default=CHUNK, metavar="N", help="seeds at a time")
    parser.add_argument("--only", default="", metavar="TEXT", help="sources with this in the name")
    parser.add_argument("--no-mutants", action="store_true", help="do not plant the bugs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: only print")
    arguments = parser.parse_args(words)
    if not judging.VERIFY.is_file():
        say(f"{judging.VERIFY}: expected the program, got none; hint: ci/build dsv32-verify")
        return 6
    found, absent = available(arguments.mlx_python)
    found = [source for source in found if arguments.only in source.name]
    if not found:
        say("sources: expected an environment, got none; hint: ci/setup golden")
        return 6
    end = time.monotonic() + 60 * arguments.minutes
    try:
        results = measure(found, arguments.runs, end, arguments.chunk)
    except (Failure, RuntimeError) as failure:
        say(str(failure))
        return 6
    if not results:
        say("runs: expected some, got none; hint: a larger --minutes")
        return 5
    code = (ROOT / "measure/calibration/mutants.py").read_bytes()
    key = hashlib.sha256(judging.VERIFY.read_bytes() + code).hexdigest()
    planted = []
    if not arguments.no_mutants:
        planted = mutants.measure(KEPT / "mutants", key, threads=2, end=end)
    text = page.markdown(results, planted, [*short(results, planted, arguments), *absent])
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)
    return 1 if page.alarms_of(results) else 0


if __name__ == "__main__":
    sys.exit(main())
