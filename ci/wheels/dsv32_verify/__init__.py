"""The judge of DeepSeek-V3.2 implementations, as a program and as an op library of torch.

`dsv32-verify` on the command line; `load_ops()` gives torch.ops.dsv32.*. The program is linked with
the torch that this package depends on, which stands beside it: an environment of its own is best.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PROGRAM = FOLDER / "bin" / "dsv32-verify"
OPS = FOLDER / "lib" / "libdsv32_ops.so"


def load_ops() -> None:
    """Registers torch.ops.dsv32.* and torch.ops.dsv32_simt.*."""
    import torch

    torch.ops.load_library(str(OPS))


def main() -> int:
    """Becomes the program. 6 when torch is not where it looks for it."""
    beside = FOLDER.parent / "torch"
    if not beside.is_dir():
        spec = importlib.util.find_spec("torch")
        got = str(Path(spec.origin).parent) if spec and spec.origin else "none"
        print(f"dsv32-verify: torch: expected {beside}, got {got}", file=sys.stderr)
        return 6
    os.execv(PROGRAM, [str(PROGRAM), *sys.argv[1:]])
