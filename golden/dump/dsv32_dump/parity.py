"""Judges a live model: dumps it and asks the program dsv32-verify, which may live elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from .case import listed_cases
from .deliver import dump
from .errors import DumpError
from .settings import Options

PROGRAM = "dsv32-verify"
VARIABLE = "DSV32_VERIFY"  # where the program is, when it is not on PATH


def find_program(program: str | Path | None = None) -> str:
    """The program: the one given, $DSV32_VERIFY, or the one on PATH. Throws DumpError."""
    named = program or os.environ.get(VARIABLE) or shutil.which(PROGRAM)
    if named and shutil.which(str(named)):
        return str(named)
    hint = f"install the wheel dsv32_verify in an environment of its own and set {VARIABLE}"
    want = f"a program: on PATH, in {VARIABLE} or given"
    raise DumpError(6, PROGRAM, "not found", want, str(named), hint)


def make_checkpoint(case: str, folder: str | Path, program: str | Path | None = None) -> Path:
    """The synthetic checkpoint of a case, which from_pretrained opens. Throws DumpError."""
    words = [find_program(program), "weights", "make", "--case", case, "--out", str(folder), "-q"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DumpError(done.returncode, "weights make", done.stderr.strip())
    return Path(folder)


def assert_parity(
    model: nn.Module,
    case: str | dict[str, Any],
    options: Options | None = None,
    *,
    checkpoint: str | Path | None = None,
    dialect: str | None = None,
    accept_weak: bool = False,
    program: str | Path | None = None,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Throws AssertionError, with the report for people, unless the model computes the case.

    model: with the weights of the case, best by its from_pretrained on a folder of make_checkpoint
    (named as `checkpoint`, what was loaded is compared with it). options: default forward and
    backward, or forward alone where the case has chunks, with the backends that the model has.
    out: a folder for trace and reports; without one they are kept only where the model fails.
    Returns report.json. Throws DumpError when the program is not there or refuses the file.
    """
    judge = find_program(program)
    content = _case_of(case)
    if options is None:
        options = Options(
            backward=not content["chunks"], attn_implementation=None, experts_implementation=None
        )
    folder = Path(out) if out else Path(tempfile.mkdtemp(prefix="dsv32-"))
    folder.mkdir(parents=True, exist_ok=True)
    kept = out is not None
    try:
        trace = folder / f"{content.get('name', 'model')}.safetensors"
        dump(model, content, trace, options, checkpoint=checkpoint)
        words = [judge, "--candidate", str(trace), "--out", str(folder), "--color", "never"]
        words += ["--dialect", dialect] if dialect else []
        words += ["--accept-weak"] if accept_weak else []
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        report = folder / "report.json"
        if not report.is_file():
            raise DumpError(done.returncode, PROGRAM, done.stderr.strip() or "no report")
        if done.returncode:
            kept = True
            said = f"{PROGRAM} exits with {done.returncode}; trace and reports: {folder}"
            raise AssertionError(f"{said}\n{done.stdout}")
        return json.loads(report.read_text())
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _case_of(case: str | dict[str, Any]) -> dict[str, Any]:
    if not isinstance(case, str):
        return case
    if case not in listed_cases():
        raise DumpError(2, "case", "unknown", "one of " + ", ".join(listed_cases()), case)
    return dict(listed_cases()[case])
