"""Writes trace files of an engine of integrations/engines: one line of JSON on stdin each.

    python engine_worker.py mlx_engine

The line: case (a listed name), seed, file, options (arguments of the engine's `trace_of`). The
answer is `done`, or `failed` and why. Needs numpy, safetensors and what the engine imports.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import dsv32_trace as kit
from synthetic import load_cases, write_checkpoint

from calibration.serve import serve


def write(engine: Any, job: dict[str, Any]) -> None:
    case = dataclasses.replace(load_cases()[job["case"]], seed=job["seed"])
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(case, Path(folder))
        (Path(folder) / kit.CASE_FILE).write_text(case.json)
        engine.trace_of(Path(folder), **job["options"]).write(job["file"])


if __name__ == "__main__":
    serve(functools.partial(write, importlib.import_module(sys.argv[1])))
