"""python golden/make demo: traces of DeepSeek's own inference/model.py, which the user hands in.

    python golden/make demo --model PATH                              # data/demo, all of them
    python golden/make demo --model PATH --golden tiny-wide.bf16 --out DIR
    python golden/make demo --model PATH --check                      # against data/demo

NAME is CASE.MODE or CASE.MODE.decode, of any case that the demo can run. A trace is written only
after the checks of checks.py; they are named in its `producer`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from agreement import limit
from dsv32_dump import DumpError
from dsv32_trace import canonical_json
from real import THREADS, GoldenError
from synthetic import ROOT, Case, load_cases
from torch import Tensor

from demo import checks, taps, trace
from demo.checks import require
from demo.model import MODES, Mode, open_demo

DATA = ROOT / "golden" / "data" / "demo"
FORMAT = "dsv32-verify.demo-manifest"
PREFILL = 20  # tokens before a decode run goes on one by one
WHOLE = (
    "tiny-wide.float32 o128.bf16 o128.bf16-shipped o128.fp8 o128.fp8-plain o128.fp8.decode "
    "o128-lanes.fp8 o128-lanes.fp8-plain"
).split()
SKETCHED = "o128-two.bf16 o128-two.fp8 o128-two.fp8-plain o128-lanes.bf16-shipped".split()


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One golden: what its name says."""

    name: str
    case: Case
    mode: Mode
    chunks: tuple[int, ...]

    @property
    def expanded(self) -> int:
        """Rows that are computed from keys per head."""
        return self.chunks[0] if self.chunks else self.case.S


def parse_name(name: str) -> Wanted:
    """CASE.MODE or CASE.MODE.decode. Throws GoldenError for another name."""
    words, cases = name.split("."), load_cases()
    fits = len(words) == 2 or (len(words) == 3 and words[2] == "decode")
    if not fits or words[0] not in cases or words[1] not in MODES:
        want = f"CASE.MODE or CASE.MODE.decode, MODE of {', '.join(MODES)}"
        raise GoldenError(f"--golden {name}: expected {want}, got another name")
    case = cases[words[0]]
    chunks = (PREFILL, *[1] * (case.S - PREFILL)) if len(words) == 3 else ()
    if chunks and (case.pad or case.S <= PREFILL):
        raise GoldenError(f"--golden {name}: expected a case without padding, longer than "
                          f"{PREFILL} tokens, got pad {case.pad}, S {case.S}")  # fmt: skip
    return Wanted(name, case, MODES[words[1]], chunks)


def make(wanted: Wanted, model: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Taps and metadata of a run that passed the checks. Throws GoldenError when one did not."""
    run = taps.run(open_demo(model, wanted.case, wanted.mode), wanted.case, wanted.chunks)
    found = check_plain(wanted.case, model)
    if wanted.mode.dtype != "float32":
        bits, wide = checks.op_by_op(wanted.case, wanted.mode, run, wanted.expanded)
        found |= require(wanted.case, "bits", bits, limit("demo.bits"))
        found |= require(wanted.case, "wide", wide, limit("demo.wide"))
    return run, trace.metadata(wanted.case, wanted.mode, wanted.chunks, found)


def check_plain(case: Case, model: Path) -> dict[str, Any]:
    """(a) and (c): the float32 run without quantisation, in one pass and token by token."""
    mode = MODES["float32"]
    demo = open_demo(model, case, mode)
    one = taps.run(demo, case)
    found = require(case, "whole", checks.whole_model(case, mode, one, case.S), limit("demo.whole"))
    if not case.pad:
        other = taps.run(demo, case, (1,) * case.S)
        same = checks.same_function(case, one, other)
        found |= require(case, "absorbed", same, limit("demo.absorbed"))
    return found


def write(wanted: Wanted, model: Path, folder: Path, sketch: bool) -> Path:
    """Writes NAME.safetensors, made twice: both runs must give the same values."""
    run, texts = make(wanted, model)
    again = taps.run(open_demo(model, wanted.case, wanted.mode), wanted.case, wanted.chunks)
    unlike = [name for name, value in run.items() if not torch.equal(value, again[name])]
    if unlike:
        raise GoldenError(f"{wanted.name}: two runs gave different values: {unlike}")
    out = folder / f"{wanted.name}.safetensors"
    trace.write(out, wanted.case, run, texts, sketch)
    return out


def write_manifest(folder: Path) -> None:
    """manifest.json: every trace of the folder with its size and sha256."""
    files = []
    for file in sorted(folder.glob("*.safetensors")):
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files.append({"file": file.name, "sha256": digest, "size": len(content)})
    document = {"format": FORMAT, "version": 1, "files": files}
    (folder / "manifest.json").write_text(canonical_json(document) + "\n")


def compare(fresh: Path, committed: Path) -> list[str]:
    """The taps of a new run that are not the committed ones, bit for bit."""
    from safetensors.torch import load_file

    if not committed.is_file():
        raise GoldenError(f"{committed}: file: expected a golden to compare with, got none")
    new, old = load_file(fresh), load_file(committed)
    out = [f"{committed.stem}: {name}: in one file only" for name in new.keys() ^ old.keys()]
    for name in new.keys() & old.keys():
        if new[name].shape != old[name].shape or not torch.equal(new[name], old[name]):
            out.append(f"{committed.stem}: {name}: other values")
    return sorted(out)


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="golden/make demo", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    release = "inference/model.py of the final release; its sha256 is checked"
    parser.add_argument("--model", type=Path, required=True, metavar="PATH", help=release)
    parser.add_argument("--golden", nargs="+", metavar="NAME", default=WHOLE + SKETCHED)
    parser.add_argument("--out", type=Path, default=DATA, metavar="DIR")
    parser.add_argument("--sketch", action="store_true", help="sketched taps for all of them")
    parser.add_argument("--check", action="store_true", help="compare new runs with DIR")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    arguments = parse_arguments(words)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    found: list[str] = []
    try:
        for name in arguments.golden:
            wanted, sketch = parse_name(name), arguments.sketch or name in SKETCHED
            if arguments.check:
                with tempfile.TemporaryDirectory() as folder:
                    fresh = write(wanted, arguments.model, Path(folder), sketch)
                    found += compare(fresh, arguments.out / fresh.name)
                continue
            arguments.out.mkdir(parents=True, exist_ok=True)
            out = write(wanted, arguments.model, arguments.out, sketch)
            say(f"{out}: {out.stat().st_size} bytes; {found_of(out)}")
        if not arguments.check:
            write_manifest(arguments.out)
    except (GoldenError, DumpError) as error:
        say(str(error))
        return getattr(error, "code", 4)
    except OSError as error:
        say(f"{error.filename}: {error.strerror}")
        return 6
    for line in found:
        print(line)
    return 1 if found else 0


def found_of(file: Path) -> str:
    """What the checks found, from the file's own words."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        producer = json.loads(opened.metadata()["producer"])
    return ", ".join(f"{check} {row['value']:.2g}" for check, row in producer["checks"].items())


def say(text: str) -> None:
    print(f"make: {text}", file=sys.stderr, flush=True)
