"""Packages that an implementation imports and that are not installed.

One has a stand-in: the Hadamard transform, whose package builds for CUDA only, while the transform
is a few lines of torch. Any other is the environment's fault, not the implementation's, and is
refused instead of being told as a crash.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import DumpError, say

HADAMARD = "fast_hadamard_transform"
stand_ins: list[str] = []  # packages that were replaced in this process


def hadamard_in_use(source: bytes) -> str:
    """Which Hadamard transform ran: package, stand-in, own code of the fork's file, or none."""
    if HADAMARD in stand_ins:
        return "stand-in"
    if HADAMARD in sys.modules:
        return "package"
    return "own code" if b"hadamard" in source.lower() and b"def " in source else "none"


def hadamard_transform(x: Tensor, scale: float = 1.0) -> Tensor:
    """Sylvester-Hadamard transform of the last axis; a length that is no power of two is padded."""
    width = x.shape[-1]
    size = 1 << max(0, width - 1).bit_length()
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    out = torch.nn.functional.pad(exact, (0, size - width))
    step = 1
    while step < size:
        pairs = out.reshape(*x.shape[:-1], size // (2 * step), 2, step)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        out = torch.stack((first + second, first - second), dim=-2)
        out = out.reshape(*x.shape[:-1], size)
        step *= 2
    return (out[..., :width] * scale).to(x.dtype)


def install_stand_in() -> None:
    """A plain torch module in the place of the CUDA-only Hadamard package."""
    module = types.ModuleType(HADAMARD)
    module.hadamard_transform = hadamard_transform  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec(HADAMARD, loader=None)
    sys.modules[HADAMARD] = module
    stand_ins.append(HADAMARD)
    say(
        f"{HADAMARD} is not installed and the model has no fallback: "
        "a plain torch stand-in takes its place"
    )


def lacks_hadamard(error: BaseException | None) -> bool:
    """Whether an exception (or one that it came from) is about the absent Hadamard package."""
    while error is not None:
        if HADAMARD in str(error) and HADAMARD not in sys.modules:
            return True
        error = error.__cause__ or error.__context__
    return False


def with_stand_in(step: Callable[[], Any]) -> Any:
    """Runs a step; once more with the stand-in when it failed for want of the CUDA-only package."""
    try:
        return step()
    except Exception as error:  # a lazy import wraps its cause in any type
        if not lacks_hadamard(error):
            raise
    install_stand_in()
    return step()


def missing_package(error: BaseException | None) -> str | None:
    """The absent package that an import failed for: the environment's fault, not the model's."""
    while error is not None:
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0]
        if absent and absent != "transformers":
            return absent
        if isinstance(error, importlib.metadata.PackageNotFoundError):
            return str(error).partition(" distribution")[0]
        asked = re.search(r"pip install ['\"`]?([\w-]+)", str(error))
        if asked:
            return asked.group(1)
        error = error.__cause__ or error.__context__
    return None


def refuse_missing_package(error: BaseException) -> None:
    """Throws DumpError when an error is about an absent package."""
    package = missing_package(error)
    if package is not None:
        where = "the implementation's environment"
        hint = "install it and run again"
        raise DumpError(6, where, "packages", package, "none", hint) from error
