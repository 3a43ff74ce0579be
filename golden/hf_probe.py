"""Watches a live transformers model while it trains: its decisions, and the indexer's KL.

The KL is made of Hugging Face's own numbers: index scores from the indexer's undecorated forward
(gradients on, inputs detached), the target from the attention probabilities of the same pass.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import dump
import numpy as np
import sketch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def load_eager(checkpoint: Path) -> nn.Module:
    """The model as its users load it, float32, every kernel the plain one."""
    transformers = dump.import_transformers(None)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    words = ["--checkpoint", str(checkpoint), "--out", str(checkpoint)]
    words += ["--attn", "eager", "--dtype", "float32"]
    model = dump.load_model(transformers, dump.parse_arguments(words))
    model.set_experts_implementation("eager")
    return model


class TopkArgument(TorchFunctionMode):
    """Keeps what the last `topk` was asked to choose from."""

    scores: Tensor

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "topk":
            self.scores = args[0]
        return func(*args, **(kwargs or {}))


class Probe:
    """Attached to a model for good. `begin` before a forward pass, the others after it."""

    def __init__(self, model: nn.Module) -> None:
        self.kl_wanted = False
        self.scores: dict[int, Tensor] = {}  # layer -> [B,S,T], -inf (or nearly) where masked
        self.probs: dict[int, Tensor] = {}  # layer -> [B,H,S,T]
        self.decided: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if name.endswith(".self_attn"):
                layer = module.layer_idx
                self._watch_indexer(layer, module.indexer)
                module.register_forward_hook(self._keep_probs(layer))
            elif name.endswith(".mlp.gate"):
                module.register_forward_hook(self._keep_experts(int(name.split(".")[-3])))

    def begin(self, attention_mask: Tensor, kl: bool = False) -> None:
        """`kl`: run the indexers with gradients, on detached inputs."""
        self.kl_wanted = kl
        self.scores, self.probs, self.decided = {}, {}, {}
        S = attention_mask.shape[1]
        self.valid = attention_mask.bool()  # [B,S]
        self.visible = torch.ones(S, S).tril().bool() & self.valid[:, None, :]  # [B,S,T]

    def decisions(self) -> dict[str, np.ndarray]:
        """layers.N.topk and layers.N.router.experts, int32, ascending; -1 for none."""
        return {name: self.decided[name].numpy() for name in sorted(self.decided, key=_order)}

    def kl_sparse(self) -> list[Tensor]:
        """SPEC Eq. 4: per layer the mean over valid rows."""
        return [self._rows(layer, self._selected(layer)).mean() for layer in sorted(self.scores)]

    def kl_warmup(self) -> list[Tensor]:
        """SPEC Eq. 3: per layer; the pass must have been one of dense attention."""
        return [self._rows(layer, self.visible).mean() for layer in sorted(self.scores)]

    def _rows(self, layer: int, support: Tensor) -> Tensor:
        """KL(target || student) of each valid row, both over `support` [B,S,T]."""
        support = support[self.valid]
        heads = self.probs[layer].sum(dim=1)[self.valid]
        if (heads[~support] != 0).any():
            raise ValueError(f"layer {layer}: attention off the support of the KL")
        target = heads / heads.sum(dim=-1, keepdim=True)
        scores = self.scores[layer].float()[self.valid].masked_fill(~support, -torch.inf)
        student = torch.log_softmax(scores, dim=-1).masked_fill(~support, 0)
        return (torch.xlogy(target, target) - target * student).sum(dim=-1)

    def _selected(self, layer: int) -> Tensor:
        picked = self.decided[f"layers.{layer}.topk"].long()
        S = self.visible.shape[-1]
        chosen = torch.zeros(*picked.shape[:2], S + 1, dtype=torch.bool)
        return chosen.scatter(-1, torch.where(picked < 0, S, picked), True)[..., :S]

    def _watch_indexer(self, layer: int, indexer: nn.Module) -> None:
        frozen = type(indexer).forward  # under torch.no_grad
        live = inspect.unwrap(frozen)

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if self.kl_wanted:
                args = tuple(_detached(a) for a in args)
                kwargs = {key: _detached(value) for key, value in kwargs.items()}
            with TopkArgument() as seen:
                picked = (live if self.kl_wanted else frozen)(indexer, *args, **kwargs)
            self.scores[layer] = seen.scores
            self._keep_topk(layer, picked)
            return picked

        indexer.forward = forward

    def _keep_topk(self, layer: int, picked: Tensor) -> None:
        """A pick of an invisible key is filling."""
        seen = self.visible.gather(-1, picked.long())
        ordered = sketch.sort_topk(torch.where(seen, picked, -1).numpy())
        self.decided[f"layers.{layer}.topk"] = torch.from_numpy(ordered)

    def _keep_probs(self, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple, out: tuple[Tensor, Tensor]) -> None:
            self.probs[layer] = out[1].detach()

        return hook

    def _keep_experts(self, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple, out: tuple[Tensor, Tensor, Tensor]) -> None:
            B, S = self.valid.shape
            experts = out[2].detach().reshape(B, S, -1).sort(dim=-1).values
            self.decided[f"layers.{layer}.router.experts"] = experts.to(torch.int32)

        return hook


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _order(tap: str) -> tuple[int, str]:
    """Execution order: topk before router.experts, layer by layer."""
    _, layer, name = tap.split(".", 2)
    return int(layer), "" if name == "topk" else name
