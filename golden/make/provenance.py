"""Where a golden came from: the attribute `producer`.

No path, host or clock is in it: the bytes must repeat.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path
from typing import Any

import h5py
import torch
from dsv32_dump.environment import package_sha256
from dsv32_trace import canonical_json, weights_name
from synthetic import Case

TOOL = "golden/make"
FOLDER = Path(__file__).resolve().parent
# Read at import, like the code itself: an edit during the run is not what made the golden.
TEXTS = {str(file.relative_to(FOLDER)): file.read_bytes() for file in FOLDER.rglob("*.py")}
KEPT = (
    "transformers torch numpy python safetensors model_class device modeling_sha256 threads"
).split()


def of_case(
    case: Case, metadata: dict[str, str], weights: dict, kept: tuple[str, ...]
) -> dict[str, str | int]:
    """Attributes that tell case, config and weights, and what the run said of itself (`kept`)."""
    config = canonical_json(case.config)
    return {key: metadata[key] for key in kept} | {
        "case_name": case.name,
        "case": case.json,
        "dialect": "hf",
        "config": config,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "weights": weights_name(case.fields()),
        "weights_loaded": canonical_json(weights),
        "seed": case.seed,
    }


def producer(golden: str, maker: str, environment: dict[str, Any], **more: Any) -> str:
    """The attribute's text.

    maker: the module of this folder that made it. environment: as dsv32_dump tells it. more: what
    only some goldens have.
    """
    document = {key: environment[key] for key in KEPT} | {
        "command": f"{TOOL} --golden {golden}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "sources": sources(maker),
        "tool": TOOL,
    }
    return canonical_json(document | more)


def sources(maker: str) -> dict[str, str]:
    """sha256 by file of a module and of all that it imports from this folder, and of dsv32_dump."""
    found: set[str] = set()
    unread = files_of(maker)
    while unread:
        file = unread.pop()
        if file not in found:
            found.add(file)
            unread += imported_files(file)
    hashes = {file: hashlib.sha256(TEXTS[file]).hexdigest() for file in found}
    return hashes | {"dsv32_dump": package_sha256()}


def imported_files(file: str) -> list[str]:
    """The files of this folder that a file of it imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(TEXTS[file])):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [path for name in names for path in files_of(name)]


def files_of(module: str) -> list[str]:
    path = module.replace(".", "/")
    return [file for file in (f"{path}.py", f"{path}/__init__.py") if file in TEXTS]
