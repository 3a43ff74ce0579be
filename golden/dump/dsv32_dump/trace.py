"""The trace file: safetensors with taps as tensors, and what they are as metadata."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import safetensors
from dsv32_trace import case_metadata
from safetensors.torch import save_file
from torch import Tensor

from .errors import DumpError


def trace_metadata(case: dict[str, Any], **fields: str) -> dict[str, str]:
    """What every trace says of itself; `fields` add to that and go before it."""
    return {
        "format": "dsv32-verify.trace",
        "version": "1",
        "case": case_metadata(case),
        "rope_layout": "interleaved",
        "forced": "false",
        "missing_taps": "[]",
        "derived_taps": "[]",
    } | fields


def check_output(out: Path) -> None:
    """Throws DumpError when the file cannot be written; asked before a long run."""
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        got = "a folder or no such place"
        raise DumpError(6, str(out), "output", "a file in a writable folder", got)


def write_trace(out: Path, taps: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes the file whole or not at all: a part file is renamed at the end."""
    part = out.with_name(out.name + ".part")
    taps = {name: value.detach().cpu().contiguous().clone() for name, value in taps.items()}
    try:
        part.touch()
        mode = part.stat().st_mode  # save_file makes a private file of its own
        save_file(taps, str(part), metadata=metadata)
        part.chmod(mode)
        os.replace(part, out)
    except (OSError, safetensors.SafetensorError) as error:
        raise DumpError(6, str(out), "output", "a writable file", str(error)) from error
    finally:
        part.unlink(missing_ok=True)
