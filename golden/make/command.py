"""The command line of golden/make: which goldens, made or checked, from which transformers."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import importlib
import os
import pkgutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import compare
import decoding
import h5file
import manifest
from dsv32_dump import DumpError, ModelCrash
from real import GoldenError
from synthetic import ROOT, load_cases

DATA = ROOT / "golden" / "data"
PINNED = "5.23.0"
DESCRIPTION = "Makes the goldens: real transformers, torch, peft and DeepSpeed."


@dataclasses.dataclass(frozen=True)
class Format:
    """How files of one kind are written, read and compared."""

    write: Callable[[Path, Any], None]
    read: Callable[[Path], Any]
    differences: Callable[[Any, Any], list[str]]


@dataclasses.dataclass(frozen=True)
class Golden:
    """One file of golden/data. make: its content, from the checkpoint on."""

    name: str
    format: Format
    make: Callable[[], Any]

    def write(self, file: Path) -> None:
        self.format.write(file, self.make())
        gc.collect()

    def differences(self, old: Path, new: Path) -> list[str]:
        return self.format.differences(self.format.read(old), self.format.read(new))


def goldens_of_cases(transformers_path: Path | None = None) -> dict[str, Golden]:
    """One for each case that has a golden, by the case's name."""
    form = Format(h5file.write, h5file.read, compare.differences)
    listed = [case for case in load_cases().values() if case.golden != "none"]
    made = {case.name: functools.partial(cases.make, case, transformers_path) for case in listed}
    return {name: Golden(name, form, make) for name, make in made.items()}


def goldens_of_decoding(transformers_path: Path | None = None) -> dict[str, Golden]:
    """generate.CASE for each case that says how it is decoded."""
    form = Format(decoding.write, decoding.read, decoding.differences)
    listed = load_cases()
    made = {
        f"generate.{name}": functools.partial(decoding.make, listed[name], transformers_path)
        for name in decoding.names()
    }
    return {name: Golden(name, form, make) for name, make in made.items()}


def goldens_of_training() -> dict[str, Golden]:
    """SUITE.CASE of every module of `training` that has JOBS. It takes peft and DeepSpeed."""
    import training

    names = [f"training.{module.name}" for module in pkgutil.iter_modules(training.__path__)]
    modules = {name: importlib.import_module(name) for name in names}
    h5, alike = modules["training.h5"], modules["training.compare"].differences
    form = Format(h5.write, h5.read, alike)
    jobs = [job for module in modules.values() for job in getattr(module, "JOBS", ())]
    listed = load_cases()
    return {
        job.name: Golden(job.name, form, functools.partial(job.make, listed[job.case]))
        for job in jobs
    }


def make(golden: Golden, folder: Path) -> Path:
    """Writes NAME.h5 into `folder`. Throws GoldenError unless two runs give the same bytes."""
    files = [folder / f"{golden.name}.h5", folder / f"{golden.name}.again"]
    for file in files:
        golden.write(file)
    if manifest.sha256(files[0]) != manifest.sha256(files[-1]):
        found = golden.differences(*files)
        raise GoldenError(f"{golden.name}: two runs gave different bytes: {found or 'rounding'}")
    return files[0]


def check(golden: Golden, committed: Path) -> list[str]:
    """What a new run does differently; nothing when the bytes are the same."""
    if not committed.is_file():
        raise GoldenError(f"{golden.name}: there is no {committed.name} to compare with")
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / committed.name
        golden.write(fresh)
        if fresh.read_bytes() == committed.read_bytes():
            say(f"{golden.name}: identical bytes")
            return []
        found = golden.differences(committed, fresh)
        if not found:
            say(f"{golden.name}: other bytes, same decisions and values")
        return [f"{golden.name}: {line}" for line in found]


def step(golden: Golden, arguments: argparse.Namespace) -> list[str]:
    """Makes or checks one golden; returns what --check found."""
    target = arguments.out / f"{golden.name}.h5"
    if arguments.check:
        return check(golden, target)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out, prefix=".new-") as folder:
        os.replace(make(golden, Path(folder)), target)
    say(f"{golden.name}: {target.stat().st_size} bytes")
    return []


def say(text: str) -> None:
    print(f"make: {text}", file=sys.stderr, flush=True)


def enter_release(release: str) -> None:
    """Starts again in the environment of another release; returns when this is that environment."""
    name = ".venv-golden" if PINNED.startswith(release) else f".venv-golden-{release}"
    python = ROOT / name / "bin" / "python"
    if not python.is_file():
        raise GoldenError(f"--transformers {release}: no {name}; hint: ci/setup golden")
    if Path(sys.prefix) != ROOT / name:
        os.execv(python, [str(python), str(Path(__file__).parent), *sys.argv[1:]])


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="golden/make", description=DESCRIPTION)
    names = "of cases (tiny) or of training suites (loss_descent.tiny-wide); default: all"
    parser.add_argument("--golden", nargs="+", metavar="NAME", help=names)
    parser.add_argument("--out", type=Path, default=DATA, metavar="DIR")
    parser.add_argument("--check", action="store_true", help="compare a new run with DIR")
    release = "a release that has an environment, or a source tree: goldens of cases only"
    parser.add_argument("--transformers", metavar="RELEASE|PATH", help=release)
    return parser.parse_args(words)


def wanted(arguments: argparse.Namespace) -> list[Golden]:
    """The goldens that the command line names. Another transformers is for those of cases."""
    source = arguments.transformers
    path = Path(source) if source and Path(source).exists() else None
    if source and path is None:
        enter_release(source)
    known = goldens_of_cases(path) | goldens_of_decoding(path)
    if not source and not set(arguments.golden or [""]) <= known.keys():
        known |= goldens_of_training()
    names = arguments.golden or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        say(f"--golden: expected one of {', '.join(known)}, got {', '.join(unknown)}")
        raise SystemExit(2)
    return [known[name] for name in names]


def main(words: list[str] | None = None) -> int:
    arguments = parse_arguments(words)
    try:
        found = [line for golden in wanted(arguments) for line in step(golden, arguments)]
        if not arguments.check:
            manifest.update(arguments.out)
    except (GoldenError, DumpError, ModelCrash) as error:
        say(str(error))
        return getattr(error, "code", 4)
    except OSError as error:
        say(f"{error.filename}: {error.strerror}")
        return 6
    for line in found:
        print(line)
    return 1 if found else 0
