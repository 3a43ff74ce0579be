"""Two LoRA adapters of real peft on the model under test: the suite dual_lora.

One is driven by the LM loss, the other, on the indexer, by the KL. peft itself is used, since users
of a fork do; a fork that breaks it shows here.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from dsv32_trace import WRAPPERS, synthetic_values
from torch import nn

from .errors import DumpError

LORA_RANK, LORA_ALPHA = 8, 16
LORA_TARGETS = {
    "lm": "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj gate_proj up_proj down_proj",
    "kl": "wq_b wk weights_proj",
}
LORA_RATES = {"lm": 1e-4, "kl": 1e-3}


def attach_lora(model: nn.Module, seed: int) -> Any:
    """Both adapters on the model, in place: A synthetic like the weights, B zero."""
    try:
        import peft
    except ModuleNotFoundError as error:
        hint = "install it in the implementation's environment"
        raise DumpError(6, "--suite dual_lora", "packages", "peft", "none", hint) from error
    wrapped = None
    with plain_lora_targets():
        for name, targets in LORA_TARGETS.items():
            config = peft.LoraConfig(
                r=LORA_RANK,
                lora_alpha=LORA_ALPHA,
                lora_dropout=0.0,
                target_modules=targets.split(),
            )
            if wrapped is None:
                wrapped = peft.get_peft_model(model, config, adapter_name=name)
            else:
                wrapped.add_adapter(name, config)
    wrapped.base_model.set_adapter(list(LORA_TARGETS))
    for name, parameter in model.named_parameters():
        stream = factor_name(name)
        if stream.endswith(".lora_A.weight"):
            value = synthetic_values(seed, stream, parameter.shape[-1], parameter.numel())
            parameter.data.copy_(torch.from_numpy(value).reshape(parameter.shape))
    return wrapped


def factor_name(name: str) -> str:
    """A parameter's name without peft's prefix and adapter name; "" when it is no factor."""
    found = re.fullmatch(r"(.*\.lora_[AB])\.\w+(\.weight)", name)
    return WRAPPERS.sub("", found.group(1) + found.group(2)) if found else ""


@contextlib.contextmanager
def plain_lora_targets() -> Iterator[None]:
    """peft without what it does to targets named gate_proj, up_proj and down_proj.

    Later releases take them for the experts of an old checkpoint and move such adapters from the
    dense and shared MLPs to the fused experts.
    """
    try:
        conversion = importlib.import_module("peft.utils.transformers_weight_conversion")
        patterns = conversion._MODEL_TO_CONVERSION_PATTERN
    except (ImportError, AttributeError):  # an earlier peft
        yield
        return
    kept = patterns.pop("deepseek_v32", None)
    try:
        yield
    finally:
        if kept is not None:
            patterns["deepseek_v32"] = kept
