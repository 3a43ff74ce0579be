"""LoRA adapters of peft on somebody's own model: which targets they found, what they add up to.

peft takes a list of names and is silent about a name that nothing answers to, as long as another
one does. A run then trains less than its owner believes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

BASE = ".base_layer"
# What peft makes of the three projections of an MLP; a user's own words have a path before them.
MOVED = {"gate_up_proj", "down_proj"}


def base_model(model: nn.Module) -> nn.Module:
    """The causal LM inside of what trainers and peft put around it."""
    while True:
        inner = getattr(model, "get_base_model", None)
        inner = inner() if callable(inner) else getattr(model, "module", None)
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


def adapted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that carry an adapter, by the name that they had before they did."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and getattr(module, "lora_A", None) is not None:
            own = name.replace(BASE, "")
            parameter = getattr(module, "parameter_name", None)
            found[f"{own}.{parameter}" if parameter else own] = module
    return found


def target_findings(model: nn.Module) -> list[str]:
    """What is wrong with the adapters' targets, in words; nothing where all of them matched."""
    found: list[str] = []
    adapted = adapted_modules(base_model(model))
    for adapter, config in (getattr(model, "peft_config", None) or {}).items():
        own = [name for name, module in adapted.items() if adapter in module.lora_A]
        for target in _targets(config):
            if not any(_answers(name, target) for name in own):
                near = _nearest(target, base_model(model))
                hint = f"; did you mean {near}?" if near else ""
                found.append(f"adapter {adapter}: target {target}: 0 modules matched{hint}")
        if MOVED <= set(getattr(config, "target_parameters", None) or ()):
            found.append(f"adapter {adapter}: gate_proj, up_proj, down_proj: peft put them on the "
                         "routed experts: dense and shared MLPs have no adapter")  # fmt: skip
    return found


def dropout_of(model: nn.Module) -> float:
    """The largest dropout of an adapter: with it no forward pass in training repeats."""
    configs = (getattr(model, "peft_config", None) or {}).values()
    return max((float(getattr(c, "lora_dropout", 0.0) or 0.0) for c in configs), default=0.0)


def _targets(config: Any) -> list[str]:
    modules, parameters = config.target_modules or (), getattr(config, "target_parameters", None)
    names = [modules] if isinstance(modules, str) else sorted(modules)
    return [name for name in (*names, *(parameters or ())) if name != "all-linear"]


def _answers(name: str, target: str) -> bool:
    """peft's rule for a list of names; for one text, a regular expression."""
    if name == target or name.endswith("." + target):
        return True
    try:
        return re.fullmatch(target, name) is not None
    except re.error:
        return False


def _nearest(target: str, model: nn.Module) -> str:
    """The end of a module's name that is most like a target."""
    depth = target.count(".") + 1
    ends: dict[str, None] = {}
    for name, module in model.named_modules():
        own = name.replace(BASE, "").split(".")
        if ".lora_" in name or getattr(module, "weight", None) is None:
            continue
        ends.update(dict.fromkeys(".".join(own[-n:]) for n in (depth, depth + 1)))
    return next(iter(difflib.get_close_matches(target, list(ends), 1, 0.5)), "")


def effective_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every parameter and buffer as the forward pass uses it, adapters merged.

    Merged values are float32. Throws ValueError for adapters that are no plain LoRA.
    """
    adapted = adapted_modules(model)
    for name, value in model.state_dict(keep_vars=True).items():
        if ".lora_" in name or not isinstance(value, Tensor) or name.endswith("inv_freq"):
            continue
        own = name.replace(BASE, "")
        module = adapted.get(own) or adapted.get(own.removesuffix(".weight"))
        if module is None:
            yield own, value.detach()
            continue
        merged = value.detach().float()
        for adapter in module.active_adapters:
            if adapter in module.lora_A:
                merged = merged + _added(own, module, adapter)
        yield own, merged


def _added(name: str, module: nn.Module, adapter: str) -> Tensor:
    if getattr(module, "use_dora", {}).get(adapter):
        raise ValueError(f"{name}: adapter {adapter}: expected plain LoRA, got DoRA")
    with torch.no_grad():
        return module.get_delta_weight(adapter).float()
