"""Trains real transformers by a recipe, with a fault in torch's step: its trace.

python plant_in_training.py CHECKPOINT OUT SUITE FAULT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from dsv32_dump import Options, dump
from dsv32_dump.load import Loading, import_transformers, load_model
from dsv32_dump.lora import LORA_RANK
from torch import nn

AdamW = torch.optim.AdamW


def experts_faster(parameters: Iterable[nn.Parameter], lr: float, **words: Any) -> AdamW:
    """Fused experts, the tensors of rank 3, get ten times the rate."""
    parameters = list(parameters)
    experts = {"params": [p for p in parameters if p.ndim == 3], "lr": 10 * lr}
    return AdamW([experts, {"params": [p for p in parameters if p.ndim < 3]}], lr=lr, **words)


def norm_alone(parameters: Iterable[nn.Parameter], limit: float) -> torch.Tensor:
    """clip_grad_norm_ that does not clip."""
    norms = [p.grad.norm() for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms))


def one_rate(parameters: Iterable[nn.Parameter], lr: float, **words: Any) -> AdamW:
    """The rate of the LoRA adapters, for the indexer's too."""
    return AdamW(parameters, lr=1e-4, **words)


def without_b(parameters: Iterable[nn.Parameter], **words: Any) -> AdamW:
    """Every B, of as many columns as the rank, is left out."""
    return AdamW([p for p in parameters if p.shape[1] != LORA_RANK], **words)


FAULTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "weight-decay-in-gradient": (torch.optim, "AdamW", torch.optim.Adam),
    "clip-missing": (nn.utils, "clip_grad_norm_", norm_alone),
    "learning-rate-of-group": (torch.optim, "AdamW", experts_faster),
    "one-rate": (torch.optim, "AdamW", one_rate),
    "without-b": (torch.optim, "AdamW", without_b),
}


def main(checkpoint: Path, out: str, suite: str, fault: str) -> None:
    model = load_model(import_transformers(), Loading(checkpoint, attn="eager"))
    case = json.loads((checkpoint / "dsv32_case.json").read_text(encoding="utf-8"))
    owner, name, replacement = FAULTS[fault]
    with mock.patch.object(owner, name, replacement):
        dump(model, case, out, Options(suite=suite))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
