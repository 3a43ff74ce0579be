"""The indexer's KL on real transformers: its own code, with gradients, on detached inputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from real import GoldenError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _TopkArgument(TorchFunctionMode):
    """Keeps what `topk` was asked to choose from: the index scores, with their graph."""

    scores: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "topk":
            self.scores = args[0]
        return func(*args, **(kwargs or {}))


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return type(value)(map(_detached, value)) if isinstance(value, tuple) else value


def index_scores(module: nn.Module, args: tuple, kwargs: dict) -> Tensor:
    """[B, S, T] by the module's own code, without its no_grad and with detached inputs."""
    undecorated = type(module).forward.__wrapped__
    with torch.enable_grad(), _TopkArgument() as mode:
        undecorated(module, *_detached(args), **{k: _detached(v) for k, v in kwargs.items()})
    if mode.scores is None:
        raise GoldenError("the indexer chose without topk")
    return mode.scores


@dataclasses.dataclass
class LayerKl:
    """[B, S, T] target and student (0 off the support and on padded queries), rows [B, S]."""

    target: Tensor
    student: Tensor
    rows: Tensor
    loss: Tensor  # mean over valid query rows


def layer_kl(probs: Tensor, scores: Tensor, support: Tensor, valid: Tensor) -> LayerKl:
    """docs/spec.md, Eq. 3 and 4: KL(p || softmax of the scores on the support), exact xlogy."""
    valid = valid.bool()
    support = support & valid[..., None]
    target = torch.where(support, probs.detach().sum(dim=1), 0.0)
    target = target / torch.where(valid, target.sum(dim=-1), 1.0)[..., None]
    # Padded queries get a row of equal scores: no NaN, and their terms are cut off below.
    kept = torch.where(support, scores, torch.where(valid[..., None], -torch.inf, 0.0))
    logs = torch.where(support, torch.log_softmax(kept, dim=-1), 0.0)
    terms = torch.xlogy(target, target) - target * logs
    rows = terms.sum(dim=-1)
    student = torch.where(support, logs.exp(), 0.0)
    return LayerKl(target, student.detach(), rows, rows[valid].mean())


def kl_taps(layers: list[LayerKl]) -> dict[str, np.ndarray]:
    """The taps of docs/formats.md, float32."""
    taps = {}
    for number, layer in enumerate(layers):
        for name in ("target", "student", "rows"):
            taps[f"layers.{number}.kl.{name}"] = getattr(layer, name)
        taps[f"layers.{number}.loss.kl"] = layer.loss
    taps["loss.kl"] = mean_kl(layers)
    return {name: value.detach().numpy().astype(np.float32) for name, value in taps.items()}


def mean_kl(layers: list[LayerKl]) -> Tensor:
    return torch.stack([layer.loss for layer in layers]).mean()
