"""Where the numbers of a trace came from: versions, places, and hashes of the code that ran.

What is written down is what was imported, not what was asked for: a fork's checkout beside an
installed transformers has misled people before.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import inspect
import platform
import sys
from pathlib import Path
from typing import Any

import dsv32_trace
import numpy as np
import safetensors
import torch
from torch import nn

from .packages import hadamard_in_use
from .parts import find_parts

TOOL = "golden/dump"


@functools.cache
def package_sha256() -> str:
    """The hash of this tool's source files, the same in a folder and in the zipped tool."""
    total = hashlib.sha256()
    package = importlib.resources.files(__package__)
    sources = {f.name: f.read_bytes() for f in package.iterdir() if f.name.endswith(".py")}
    kit = dsv32_trace.__loader__
    sources["dsv32_trace.py"] = kit.get_data(dsv32_trace.__file__)
    for name, source in sorted(sources.items()):
        total.update(f"{name} {len(source)}\n".encode() + source)
    return total.hexdigest()


package_sha256()  # at import, like the code itself: a later edit is not what ran


def tool() -> dict[str, str]:
    """The entries of `producer` that name this tool."""
    return {"tool": TOOL, "tool_sha256": package_sha256()}


def environment(model: nn.Module) -> dict[str, Any]:
    """The trace's `producer`: library versions, where transformers came from, the model's file."""
    parts = find_parts(model)
    attention = next((n for n, p in parts.items() if p.role == "attention"), "")
    file = source_file(type(model.get_submodule(attention)))
    source = file.read_bytes() if file.is_file() else b""
    out: dict[str, Any] = {
        **tool(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
        "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
        "modeling_file": str(file),
        "modeling_sha256": hashlib.sha256(source).hexdigest(),
        "device": _device(model),
        "threads": torch.get_num_threads(),
        "hadamard": hadamard_in_use(source),
        "config_adjusted": getattr(model, "dsv32_config_adjusted", {}),
    }
    transformers = sys.modules.get("transformers")
    if transformers is not None and getattr(transformers, "__file__", None):
        package = Path(transformers.__file__).resolve().parent
        out["transformers"] = str(transformers.__version__)
        out["transformers_path"] = str(package)
        out["transformers_commit"] = git_commit(package) or "none"
    return out


def source_file(cls: type) -> Path:
    """The file that defines a class; a path that does not exist when there is none."""
    try:
        return Path(inspect.getfile(cls))
    except (OSError, TypeError):  # a class made in a notebook or a console
        return Path("unknown")


def _device(model: nn.Module) -> str:
    devices = sorted({str(p.device) for p in model.parameters()})
    names = [torch.cuda.get_device_name(d) for d in devices if d.startswith("cuda")]
    return ", ".join(devices + names)


def git_commit(path: Path) -> str | None:
    """The commit checked out above `path`, read from .git without running git."""
    for folder in (path, *path.parents):
        git = folder / ".git"
        if git.is_file():
            text = git.read_text().strip()
            git = (folder / text.removeprefix("gitdir:").strip()).resolve()
        if (git / "HEAD").is_file():
            return _resolve_head(git)
    return None


def _resolve_head(git: Path) -> str | None:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head
    ref = head.removeprefix("ref:").strip()
    common = git / "commondir"
    roots = [git] + ([(git / common.read_text().strip()).resolve()] if common.is_file() else [])
    for root in roots:
        if (root / ref).is_file():
            return (root / ref).read_text().strip()
        packed = root / "packed-refs"
        for line in packed.read_text().splitlines() if packed.is_file() else ():
            if line.endswith(" " + ref):
                return line.split(" ")[0]
    return None
