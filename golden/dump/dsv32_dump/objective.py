"""What a model hands out for training, and the KL objective of its indexers.

Forks that train the indexer may offer index scores, KL targets and a KL loss through public
switches. They are taken at their word: where there is a KL of the model's own, that one is
differentiated, leaks and all, for its leaks are what the judge is to see. Others get the KL of
kl.py, on their own index scores and attention.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import TYPE_CHECKING, Any

import torch
from dsv32_trace import canonical_json
from torch import Tensor

from .errors import DumpError
from .kl import KL_FIELDS, KL_INPUTS, TRAINING_OUTPUTS, indexer_kl
from .recorder import Recorder
from .tensors import keep
from .watch import live_indexers, watch_modules

if TYPE_CHECKING:
    from .run import Run


def training_switches(run: Run) -> list[str]:
    """Public training outputs that this implementation offers by name."""
    offered = set(inspect.signature(run.model.forward).parameters)
    for module in (run.model, getattr(run.model, "base_model", None)):
        recorded = getattr(module, "_can_record_outputs", None) or ()
        offered |= {f"output_{name}" for name in recorded}
    return [f"output_{name}" for name in TRAINING_OUTPUTS if f"output_{name}" in offered]


def training_outputs(run: Run) -> Tensor | None:
    """Keeps ix.scores (where no hook saw them), kl.target and loss.kl as the model hands them out.

    Returns its KL loss, with a graph in the KL modes. This is a pass of its own: the switches may
    add terms to the loss.
    """
    switches = training_switches(run) if run.options.training_outputs else []
    if not switches or run.options.chunks:
        return None
    run.phase = "training outputs"
    with torch.enable_grad() if run.options.kl else torch.no_grad():
        arguments = run.arguments(0, run.case["S"], None)
        out = run.model(**arguments, **dict.fromkeys(switches, True))
    targets = getattr(out, "indexer_kl_targets", None) or getattr(out, "indexer_targets", None)
    keep_layers(run, getattr(out, "indexer_scores", None), "ix.scores")
    keep_layers(run, targets, "kl.target")
    run.out.metadata["training_outputs"] = canonical_json(switches)
    loss = own_kl_loss(run, out, targets)
    if loss is not None:
        run.out.taps["loss.kl"] = keep(loss).reshape(())
    return loss


def own_kl_loss(run: Run, out: Any, targets: Any) -> Tensor | None:
    """The KL loss in a model's output, or what the helper beside its class makes of the targets."""
    loss = next((v for v in (getattr(out, n, None) for n in KL_FIELDS) if v is not None), None)
    helper = getattr(sys.modules[type(run.model).__module__], "compute_indexer_kl_loss", None)
    if loss is None and helper is not None and targets:
        loss = helper(out.indexer_scores, targets)
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None


def keep_layers(run: Run, values: Any, tap: str) -> None:
    """Keeps one tensor [B,S,S] per layer as a tap, where no hook saw it."""
    shape = (run.case["B"], run.case["S"], run.case["S"])
    for layer, value in enumerate(values if isinstance(values, (tuple, list)) else ()):
        name = f"layers.{layer}.{tap}"
        fits = isinstance(value, Tensor) and tuple(value.shape) == shape
        if fits and run.options.wanted(name):
            run.out.taps.setdefault(name, keep(value))


def kl_loss(run: Run) -> Tensor:
    """kl_objective for a step of a training: nothing is recorded but what it needs."""
    with contextlib.ExitStack() as undo:
        run.settings(undo)
        recorder = run.recorder()
        undo.enter_context(watch_modules(recorder))
        return kl_objective(run, recorder)


def kl_objective(run: Run, recorder: Recorder) -> Tensor:
    """The indexer's KL with its graph, the mean over layers; its taps are kept on the way."""
    with live_indexers(recorder):
        run.passes(recorder)
    own = training_outputs(run)
    where = f"mode {run.options.mode}"
    if own is not None and not own.requires_grad:
        raise DumpError(4, "capture", where, "a KL with a graph", "none")
    losses = [layer_kl(run, recorder, layer) for layer in sorted(recorder.live_scores)]
    if own is None and len(losses) != run.sizes.layers:
        want = f"index scores of {run.sizes.layers} layers, as a topk or sort inside them sees"
        raise DumpError(4, "capture", where, want, f"those of {len(losses)}")
    run.out.metadata["kl_source"] = "spec" if own is None else "own"
    if own is not None:
        return own
    loss = torch.stack(losses).mean()
    run.out.taps["loss.kl"] = keep(loss)
    run.out.derived.append("loss.kl")
    return loss


def layer_kl(run: Run, recorder: Recorder, layer: int) -> Tensor:
    """One layer's KL loss with its graph; its KL taps are kept, where the model gave none."""
    at, taps = f"layers.{layer}.", run.out.taps
    scores = recorder.live_scores[layer].reshape(recorder.B, recorder.S, recorder.T)
    missing = [n for n in KL_INPUTS[: 1 if run.dense else 2] if at + n not in taps]
    if missing:
        want = f"the taps {at}{missing[0]} of the forward pass"
        raise DumpError(4, "capture", f"mode {run.options.mode}", want, "none")
    valid = torch.from_numpy(run.batch["attention_mask"]).bool()
    support = torch.ones(recorder.S, recorder.T).tril().bool() & valid[:, None, :]
    if not run.dense:
        support &= picked_keys(taps[at + "topk"], recorder.T)
    tensors = (taps[at + "attn.probs"], support, valid)
    probs, support, valid = (value.to(scores.device) for value in tensors)
    found = indexer_kl(probs, scores, support, valid)
    for name, value in found.items():
        if run.options.wanted(at + name) and at + name not in taps:
            taps[at + name] = keep(value)
            run.out.derived.append(at + name)
    return found["loss.kl"]


def picked_keys(topk: Tensor, T: int) -> Tensor:
    """[B,S,T] bool from picks [B,S,K], -1 for none."""
    picked = topk.long()
    chosen = torch.zeros(*picked.shape[:2], T + 1, dtype=torch.bool)
    return chosen.scatter(2, picked.masked_fill(picked < 0, T), True)[..., :-1]
