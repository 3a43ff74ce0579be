"""How a model is run (Options), and the switches set on it for that, which are put back afterwards.

A live model belongs to its user: whatever is changed on it is undone when the run ends, crash or
not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import re
from typing import Any

import numpy as np
from torch import nn

from .kl import KL_INPUTS


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Greedy decoding: `steps` tokens per row at most; a row that emitted `eos` is finished."""

    steps: int = 24
    eos: int = 0


@dataclasses.dataclass(frozen=True)
class Options:
    """What is run, how, and what is kept of it.

    backward: gradients of the LM loss too. kl: "warmup" or "sparse": the indexer's KL, its taps and
    gradients, instead of the LM loss; the model's own where it has one, else that of kl.py on its
    index scores and probabilities. suite: the model is trained by the recipe of that training
    suite, in place, for `steps` steps (default: as many as the suite's golden has).

    attn_implementation, experts_implementation: set on the model where it has such a switch; None
    leaves the model's own.
    mask: "given" or "none" (no attention mask is passed at all); None: what the case says.
    chunks: lengths of a chunked prefill and decode through the model's own cache; None: the case's.
    batch: tokens in place of the case's. forced: taps `layers.N.topk` and `layers.N.router.experts`
    that replace the model's own decisions.
    use_cache: None leaves the model's own setting.
    taps: patterns of the taps to keep, with or without `layers.N.`.
    slopes: the gradient with respect to every tap too, as `dtap.NAME` (modes backward and KL).
    decoding: the model's own `generate` goes on after the batch, with a dynamic, static or
    offloaded `cache`.
    sketch: the file keeps chosen rows, norms and projections in place of whole taps.
    training_outputs: ask for index scores and KL targets where the model hands them out.
    """

    backward: bool = False
    kl: str = ""
    suite: str = ""
    steps: int | None = None
    decoding: Decoding | None = None
    cache: str = "dynamic"
    attn_implementation: str | None = "eager"
    experts_implementation: str | None = "eager"
    mask: str | None = None
    chunks: tuple[int, ...] | None = None
    batch: dict[str, np.ndarray] | None = None
    forced: dict[str, Any] | None = None
    use_cache: bool | None = None
    gradient_checkpointing: bool = False
    taps: tuple[str, ...] = ("*",)
    slopes: bool = False
    training_outputs: bool = True
    sketch: bool = False

    @property
    def mode(self) -> str:
        """The trace's word for what is run."""
        if self.suite:
            return "train"
        if self.decoding:
            return "generate"
        return f"kl-{self.kl}" if self.kl else "backward" if self.backward else "forward"

    def of_case(self, case: dict[str, Any]) -> Options:
        """With mask and chunks of the case where they are left to it."""
        mask = self.mask or ("given" if case.get("mask_given", True) else "none")
        chunks = tuple(case["chunks"] if self.chunks is None else self.chunks)
        return dataclasses.replace(self, mask=mask, chunks=chunks)

    def wanted(self, name: str) -> bool:
        """Whether this tap is kept."""
        name = name.removeprefix("dtap.")
        short = re.sub(r"^layers\.\d+\.", "", name)
        if self.kl and short in KL_INPUTS:
            return True
        return any(fnmatch.fnmatchcase(n, p) for n in (name, short) for p in self.taps)


def apply_settings(model: nn.Module, options: Options, undo: contextlib.ExitStack) -> None:
    """Backends, train or eval, gradient checkpointing; `undo` puts everything back."""
    undo.callback(model.train, model.training)
    for kind in ("attn", "experts"):
        value = getattr(options, f"{kind}_implementation")
        if value is not None:
            set_implementation(model, kind, value, undo)
    model.train(options.mode not in ("forward", "generate"))
    if options.gradient_checkpointing:
        verb = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
        getattr(model, f"{verb}_checkpointing_enable")()
        undo.callback(getattr(model, f"{verb}_checkpointing_disable"))


def set_implementation(model: nn.Module, kind: str, value: str, undo: contextlib.ExitStack) -> None:
    """Sets `_attn_implementation` or `_experts_implementation`, where the model has the switch."""
    attribute = f"_{kind}_implementation"
    setter = getattr(model, f"set_{kind}_implementation", None)
    old = getattr(model.config, attribute, None)
    if old == value:
        return
    if setter is None and kind == "experts":
        return  # one implementation only
    if setter is None:
        setter = functools.partial(setattr, model.config, attribute)
    setter(value)
    if old is not None:
        undo.callback(setter, old)


def widen_selection(model: nn.Module, S: int, undo: contextlib.ExitStack) -> None:
    """Dense mode for an implementation without that switch: every visible key is selected."""
    for owner in (model.config, *model.modules()):
        old = getattr(owner, "index_topk", None)
        if isinstance(old, int) and old < S:
            owner.index_topk = S
            undo.callback(setattr, owner, "index_topk", old)
