"""Makes the goldens: real transformers on the cases of configs/cases.json.

    .venv-golden/bin/python golden/generate.py [--case NAME ...] [--out DIR]
    .venv-golden/bin/python golden/generate.py --check [--case NAME ...] [--transformers 5.17]

Every case is computed twice, from the checkpoint on; a file is kept only when both are the same
bytes. --check writes nothing: it compares a new run with the files in DIR (compare.py says how);
exit 1 when they differ.
--transformers takes a release that has an environment (.venv-golden-RELEASE) or the path of a
source tree. The files are committed in golden/data/.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import dsv32_dump as dump
import h5file
import h5py
import manifest
import numpy as np
import torch
from compare import differences
from manifest import sha256
from synthetic import (
    ROOT,
    Case,
    is_trainable,
    load_cases,
    weight_specs,
    write_checkpoint,
)

DATA = ROOT / "golden" / "data"
PINNED = "5.23.0"
THREADS = 2  # sums depend on it, so it is part of the golden


# Taken at import, like the code itself: an edit during the run is not what made the golden.
SOURCES = {
    name: sha256(ROOT / "golden" / name)
    for name in (
        "make/generate.py",
        "dump/dsv32_dump/__init__.py",
        "make/synthetic.py",
        "make/sketch.py",
        "make/h5file.py",
    )
}


class GoldenError(Exception):
    """A run that must not become a golden."""


@dataclasses.dataclass
class Run:
    """One pass over a case with real code: taps in execution order, provenance."""

    taps: dict[str, np.ndarray]
    attributes: dict[str, str | int]


def run_case(case: Case, transformers_path: Path | None = None) -> Run:
    """Checkpoint, from_pretrained, capture. Throws GoldenError on a missing tap or weight."""
    transformers = dump.import_transformers(transformers_path)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder)
        write_checkpoint(case, checkpoint)
        words = ["--checkpoint", folder, "--out", folder, "--attn", "eager", "--dtype", "float32"]
        model = dump.load_model(transformers, dump.parse_arguments(words))
        loaded = dump.compare_weights(model, dump.Checkpoint(checkpoint))
    check_loaded(case, loaded)
    capture = dump.capture(model, case.fields(), backward=not case.chunks)
    taps = ordered_taps(case, capture)
    return Run(taps, attributes(case, capture.metadata, loaded))


def check_loaded(case: Case, loaded: dict) -> None:
    wrong = {kind: loaded[kind] for kind in ("different", "missing", "unexpected") if loaded[kind]}
    if wrong or loaded["identical"] != len(weight_specs(case.config)):
        raise GoldenError(f"{case.name}: weights: {dump.canonical_json(wrong or loaded)}")


def ordered_taps(case: Case, capture: dump.Capture) -> dict[str, np.ndarray]:
    """Forward taps, then gradients in back-propagation order; nothing absent, nothing left over."""
    forward = [name for name in capture.taps if not name.startswith("grad.")]
    weights = [name for name in reversed(weight_specs(case.config)) if is_trainable(name)]
    gradients = [f"grad.{name}" for name in weights]
    names = forward + ([] if case.chunks else gradients)
    missing = capture.missing + [name for name in names if name not in capture.taps]
    extra = sorted(capture.taps.keys() - set(names))
    if missing or extra:
        raise GoldenError(f"{case.name}: missing taps {missing}, unexpected taps {extra}")
    return {name: capture.taps[name].detach().numpy() for name in names}


def attributes(case: Case, metadata: dict[str, str], loaded: dict) -> dict[str, str | int]:
    config = dump.canonical_json(case.config)
    kept = ("mode", "dtype", "rope_layout", "mask", "forced", "attn_implementation")
    return {key: metadata[key] for key in kept} | {
        "format": h5file.FORMAT,
        "version": h5file.VERSION,
        "case_name": case.name,
        "case": case.json,
        "kind": case.golden,
        "dialect": "hf",
        "config": config,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "weights": f"synthetic:{case.seed}",
        "weights_loaded": dump.canonical_json(loaded),
        "seed": case.seed,
        "producer": producer(case, json.loads(metadata["producer"])),
    }


def producer(case: Case, environment: dict) -> str:
    """Where the numbers came from. No path, host or clock: the bytes must repeat."""
    kept = ("transformers", "torch", "numpy", "python", "safetensors", "model_class", "device")
    kept += ("modeling_sha256", "threads", "experts_implementation", "attention_layouts")
    own = {
        "command": f"golden/generate.py --case {case.name}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "sources": SOURCES,
        "tool": "golden/generate.py",
    }
    return dump.canonical_json({key: environment[key] for key in kept} | own)


def generate(case: Case, folder: Path, transformers_path: Path | None) -> Path:
    """Writes CASE.h5 into `folder`, made twice."""
    files = [folder / f"{case.name}.h5", folder / f"{case.name}.again"]
    for file in files:
        run = run_case(case, transformers_path)
        h5file.write(file, h5file.build(case, run.attributes, run.taps))
        del run
        gc.collect()
    if sha256(files[0]) != sha256(files[1]):
        found = differences(*(h5file.read(file) for file in files))
        raise GoldenError(f"{case.name}: two runs gave different bytes: {found or 'rounding'}")
    files[1].unlink()
    return files[0]


def check(case: Case, committed: Path, transformers_path: Path | None) -> list[str]:
    """What a new run does differently; nothing when the bytes are the same."""
    if not committed.is_file():
        raise GoldenError(f"{case.name}: there is no {committed.name} to compare with")
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / committed.name
        run = run_case(case, transformers_path)
        h5file.write(fresh, h5file.build(case, run.attributes, run.taps))
        if fresh.read_bytes() == committed.read_bytes():
            say(f"{case.name}: identical bytes")
            return []
        found = differences(h5file.read(committed), h5file.read(fresh))
        if not found:
            say(f"{case.name}: other bytes, same decisions and values")
        return [f"{case.name}: {line}" for line in found]


def say(text: str) -> None:
    print(f"generate: {text}", file=sys.stderr, flush=True)


def enter_release(release: str) -> None:
    """Starts again in the environment of another release; returns when this is that environment."""
    name = ".venv-golden" if PINNED.startswith(release) else f".venv-golden-{release}"
    python = ROOT / name / "bin" / "python"
    if not python.is_file():
        raise GoldenError(f"--transformers {release}: no {name}; hint: ci/setup golden")
    if Path(sys.prefix) != ROOT / name:
        os.execv(python, [str(python), *sys.argv])


def parse_arguments(words: list[str] | None, names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="generate.py", description=__doc__.split("\n")[0])
    parser.add_argument("--case", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--out", type=Path, default=DATA, metavar="DIR")
    parser.add_argument("--transformers", metavar="RELEASE|PATH")
    parser.add_argument("--check", action="store_true", help="compare a new run with DIR")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    cases = {name: case for name, case in load_cases().items() if case.golden != "none"}
    arguments = parse_arguments(words, list(cases))
    source = arguments.transformers
    path = Path(source) if source and Path(source).exists() else None
    try:
        if source and path is None:
            enter_release(source)
        found = [line for name in arguments.case for line in step(cases[name], arguments, path)]
        if not arguments.check:
            manifest.update(arguments.out)
    except (GoldenError, dump.DumpError, dump.ModelCrash) as error:
        say(str(error))
        return getattr(error, "code", 4)
    except OSError as error:
        say(f"{error.filename}: {error.strerror}")
        return 6
    for line in found:
        print(line)
    return 1 if found else 0


def step(case: Case, arguments: argparse.Namespace, path: Path | None) -> list[str]:
    if arguments.check:
        return check(case, arguments.out / f"{case.name}.h5", path)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out, prefix=".new-") as folder:
        file = generate(case, Path(folder), path)
        os.replace(file, arguments.out / file.name)
    say(f"{case.name}: {(arguments.out / file.name).stat().st_size} bytes")
    return []


if __name__ == "__main__":
    sys.exit(main())
