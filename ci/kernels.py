"""Registers, shared memory, stack and spills of every CUDA kernel, as ptxas reports them.

    .venv/bin/python ci/kernels.py [--json] [FILE.cu ...]

Compiles src/optimized/kernels/*.cu for sm_90a and keeps nothing. Exit 1: a kernel spills.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "src" / "optimized" / "kernels"

ENTRY = re.compile(r"Compiling entry function '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclasses.dataclass
class Kernel:
    file: str
    kernel: str  # demangled, without namespaces and parameters
    registers: int
    shared: int  # bytes, static
    stack: int  # bytes
    spills: int  # bytes, stores and loads


def short(name: str) -> str:
    """`void dsv32::a::rope_kernel<float>(dsv32::a::Params<float>)` -> `rope_kernel<float>`"""
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", name.removeprefix("void "))
    depth = 0
    for i, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return name[:i]
    return name


def demangled(names: list[str]) -> list[str]:
    text = "\n".join(names)
    done = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def parse(file: str, text: str) -> list[Kernel]:
    """The kernels of one compilation out of what `-Xptxas -v` wrote."""
    found: list[Kernel] = []
    for line in text.splitlines():
        if entry := ENTRY.search(line):
            found.append(Kernel(file, entry[1], 0, 0, 0, 0))
        elif stack := STACK.search(line):  # of the kernel, or of a function that it calls
            found[-1].stack += int(stack[1])
            found[-1].spills += int(stack[2]) + int(stack[3])
        elif used := USED.search(line):
            shared = SHARED.search(line)
            found[-1].registers, found[-1].shared = int(used[1]), int(shared[1]) if shared else 0
    for kernel, name in zip(found, demangled([k.kernel for k in found]), strict=True):
        kernel.kernel = short(name)
    return sorted(found, key=lambda kernel: kernel.kernel)


def compiled(path: Path) -> list[Kernel]:
    [home] = ROOT.glob(".venv/lib/python3*/site-packages/nvidia/cu13")
    command = [str(home / "bin" / "nvcc"), "-std=c++20", "-arch=sm_90a", f"-I{ROOT}"]
    command += ["-Xptxas", "-v", "-c", "-o", os.devnull, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ci/kernels.py: {path.name}: nvcc failed\n{done.stderr}")
    return parse(path.name, done.stderr)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ci/kernels.py", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="instead of a table")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.cu")
    arguments = parser.parse_args(words)
    files = arguments.files or sorted(KERNELS.glob("*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = [kernel for found in pool.map(compiled, files) for kernel in found]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(kernel) for kernel in kernels], indent=1))
    else:
        print(f"{'kernel':60} registers  shared   stack  spilled (bytes)")
        for k in kernels:
            print(f"{k.kernel:60} {k.registers:9} {k.shared:7} {k.stack:7} {k.spills:8}")
    return int(any(kernel.spills for kernel in kernels))


if __name__ == "__main__":
    sys.exit(main())
