"""What the tests of the command line share: running it, and files that are almost right."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("DSV32_VERIFY", str(ROOT / "build" / "dsv32-verify"))
ESCAPE = "\x1b"
COMPLAINT = re.compile(r"error: .+: expected .+, got .+")

OK, PARITY, USAGE, INTERNAL, ARTEFACT, NOTHING, ENVIRONMENT = range(7)
INTERRUPTED, TERMINATED = 130, 143

scratch = Path(tempfile.mkdtemp(prefix="dsv32-cli-"))  # removed at the end
good = scratch / "good.safetensors"  # the float32 reference: case tiny, forward and backward


def environment(**changes: str) -> dict[str, str]:
    """The environment of a plain machine: nothing about colours, no CI, a cache of its own."""
    names = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "CI", "RUNNER_DEBUG")
    env = {name: value for name, value in os.environ.items() if name not in names}
    return env | {"TERM": "xterm-256color", "DSV32_CACHE": str(scratch / "cache")} | changes


def run(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *map(str, words)],
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run_within(gib: int, *words: object) -> subprocess.CompletedProcess[str]:
    """A run that may take no more than so much address space, whatever this machine has."""
    return subprocess.run(
        ["bash", "-c", f'ulimit -v {gib << 20}; exec "$0" "$@"', PROGRAM, *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def checkpoint(case: str) -> Path:
    """A synthetic checkpoint in Hugging Face layout, made once per case."""
    out = scratch / "checkpoints" / case
    if not out.exists():
        made = run("weights", "make", "--case", case, "--out", out)
        assert made.returncode == OK, made.stderr
    return out


def run_on_terminal(*words: object, **changes: str) -> tuple[int, str]:
    """Exit code and what appears on a terminal (both streams)."""
    main, side = pty.openpty()
    child = subprocess.Popen(
        [PROGRAM, *map(str, words)], env=environment(**changes), stdout=side, stderr=side
    )
    os.close(side)
    seen = b""
    try:
        while chunk := os.read(main, 1 << 16):
            seen += chunk
    except OSError:  # Linux: the other side was closed
        pass
    os.close(main)
    return child.wait(), seen.decode(errors="replace")


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata())


def variant(
    name: str, tensors: dict[str, np.ndarray] | None = None, **metadata: str | None
) -> Path:
    """The good trace with other tensors or other metadata (None: left out)."""
    values = load_file(good) if tensors is None else tensors
    merged = metadata_of(good) | metadata
    path = scratch / f"{name}.safetensors"
    save_file(values, path, {k: v for k, v in merged.items() if v is not None})
    return path


def raw(name: str, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file byte by byte. `header`: JSON value, text or bytes."""
    text = header if isinstance(header, bytes) else (
        header.encode() if isinstance(header, str) else json.dumps(header).encode()
    )
    path = scratch / f"{name}.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def make_good() -> None:
    done = run("dump", "--impl", "reference", "--case", "tiny", "--mode", "backward", "--out", good)
    if done.returncode != OK:
        raise RuntimeError(done.stderr)


def clean_up() -> None:
    shutil.rmtree(scratch)


def names_in(path: Path) -> list[str]:
    with safe_open(path, framework="numpy") as file:
        return list(file.keys())


class CliTest(unittest.TestCase):
    def refused(self, done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
        """Exit code, the four-part message with these words in it, clean stdout."""
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertRegex(done.stderr, COMPLAINT)
        for word in words:
            self.assertIn(word, done.stderr)
        self.assertEqual(done.stdout, "")

    def ended(self, done: subprocess.CompletedProcess[str], code: int) -> None:
        self.assertEqual(done.returncode, code, done.stdout[-2000:] + done.stderr[-2000:])
