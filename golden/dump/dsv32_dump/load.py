"""The implementation under test: its transformers, its class, its model with given weights.

A model is loaded the way users load it, by the fork's own from_pretrained: whatever that does to
weights is part of what is judged.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
import types
from pathlib import Path
from typing import Any

import torch
from dsv32_trace import canonical_json
from torch import nn

from .errors import DumpError, say

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclasses.dataclass(frozen=True)
class Loading:
    """What from_pretrained is told.

    cls: a class of transformers, or module.Class. attn: an attention backend; "default" is what
    users get. device_map: as from_pretrained takes it. overrides: fields of the config.
    """

    checkpoint: Path
    cls: str = "AutoModelForCausalLM"
    dtype: str = "float32"
    attn: str = "default"
    device_map: str | None = None
    trust_remote_code: bool = False
    overrides: tuple[tuple[str, Any], ...] = ()


def import_transformers(path: Path | None = None) -> types.ModuleType:
    """transformers from the environment, or from the source tree or package folder `path` alone.

    Throws DumpError when it is not there, or when another one had been imported already.
    """
    if path is None:
        return _installed_transformers()
    root = path.resolve()
    sys.path.insert(0, str(_folder_of_transformers(root, path)))
    module = importlib.import_module("transformers")
    got = Path(str(module.__file__)).resolve()
    if root not in got.parents:
        want = f"one under {root}"
        hint = "another one came first: use an environment without it, or without PYTHONPATH"
        raise DumpError(4, "--transformers", "imported package", want, str(got.parent), hint)
    return module


def _installed_transformers() -> types.ModuleType:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        want, hint = "an installed package", "or --transformers PATH"
        raise DumpError(6, "transformers", "import", want, "none", hint) from error


def _folder_of_transformers(root: Path, given: Path) -> Path:
    """The folder that holds the package, in or above `root`."""
    if root.name == "transformers" and (root / "__init__.py").is_file():
        return root.parent
    for folder in (root / "src", root, root.parent):
        if (folder / "transformers" / "__init__.py").is_file():
            return folder
    want = "a source tree or a transformers package folder"
    raise DumpError(4, "--transformers", str(given), want, "neither")


def find_class(transformers: types.ModuleType, name: str) -> Any:
    """A class by name (of transformers) or as module.Class."""
    module, _, leaf = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module) if module else transformers, leaf)
    except (ImportError, AttributeError) as error:
        want = "a class of transformers, or module.Class"
        raise DumpError(2, "--class", name, want, str(error)) from error


def load_model(transformers: types.ModuleType, loading: Loading) -> nn.Module:
    """The model as its users load it: from_pretrained on the checkpoint directory."""
    version = tuple(int(part) for part in re.findall(r"\d+", transformers.__version__)[:2])
    dtype = "dtype" if version >= (4, 56) else "torch_dtype"
    options: dict[str, Any] = {dtype: DTYPES[loading.dtype]}
    if loading.attn != "default":
        options["attn_implementation"] = loading.attn
    if loading.device_map:
        options["device_map"] = loading.device_map
    if loading.trust_remote_code:
        options["trust_remote_code"] = True
    cls = find_class(transformers, loading.cls)
    config, adjusted = expert_count(transformers, loading)
    overrides = dict(loading.overrides)
    if adjusted:
        options["config"] = config
        for name, value in overrides.items():
            setattr(config, name, value)
    else:
        options |= overrides
    model = cls.from_pretrained(str(loading.checkpoint), **options)
    model.dsv32_config_adjusted = adjusted | overrides
    return model


def expert_count(transformers: types.ModuleType, loading: Loading) -> tuple[Any, dict[str, int]]:
    """The config, with a count of experts that follows the checkpoint, and what was set for that.

    transformers 5.12 sizes its experts by `num_experts`, which a released config.json does not
    have: its default of 256 contradicts a smaller `n_routed_experts`. The trace says so.
    """
    remote = {"trust_remote_code": True} if loading.trust_remote_code else {}
    config = transformers.AutoConfig.from_pretrained(str(loading.checkpoint), **remote)
    adjusted = {}
    for field in ("num_experts", "num_local_experts"):
        value, want = getattr(config, field, None), getattr(config, "n_routed_experts", None)
        if isinstance(value, int) and isinstance(want, int) and value != want:
            setattr(config, field, want)
            adjusted[field] = want
    if adjusted:
        fields = canonical_json(adjusted)
        say(f"config: {fields} set from n_routed_experts: this release's own default differs")
    return config, adjusted
