"""One training run of real transformers: model, objective, decisions, parameters after each step.

Used by the modules of the suites (lm.py and its like), which choose recipes and optimizers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import provenance
import synthetic
import torch
from dsv32_dump import sketch
from dsv32_dump.environment import environment as environment_of
from dsv32_dump.parts import Part, find_parts
from dsv32_dump.settings import widen_selection
from dsv32_dump.weights import is_transposed
from dsv32_trace import philox_lanes, unfused
from real import THREADS, Loaded, open_model
from torch import Tensor, nn

from training import h5
from training.h5 import PROJECTIONS, Content
from training.indexer_kl import LayerKl, index_scores, layer_kl, mean_kl
from training.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Job:
    """One training golden."""

    suite: str
    case: str
    make: Callable[[synthetic.Case], Content]

    @property
    def name(self) -> str:
        return f"{self.suite}.{self.case}"


def load(case: synthetic.Case) -> Loaded:
    """The case's checkpoint opened by real transformers, ready to be trained."""
    # Tensors of tiny cases are too small to be split: one thread, the same bits, no waiting.
    loaded = open_model(case, 1 if case.config_name == "tiny" else THREADS)
    loaded.model.set_experts_implementation("eager")
    loaded.model.config.use_cache = False  # an indexer that runs twice must not append its keys
    loaded.model.train()
    return loaded


# --- names and values -----------------------------------------------------------------------------


def checkpoint_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter under its unfused checkpoint name; views, so writing to them works."""
    out: dict[str, Tensor] = {}
    for name, value in model.named_parameters():
        out.update(views(model, name, value.detach()))
    return out


def checkpoint_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of the parameters that have one."""
    out: dict[str, Tensor] = {}
    for name, value in model.named_parameters():
        if value.grad is not None:
            out.update(views(model, name, value.grad))
    return out


def views(model: nn.Module, name: str, value: Tensor) -> dict[str, Tensor]:
    transposed = is_transposed(model, name)
    return dict(unfused(name, value, model.config.hidden_size, transposed))


def freeze(model: nn.Module, indexer: bool) -> None:
    """Freezes the indexer, or everything but the indexer."""
    for name, value in model.named_parameters():
        value.requires_grad_((".indexer." in name) != indexer)


@functools.cache
def parameter_codes(name: str, size: int) -> np.ndarray:
    """[size] uint16: bit p is 1 where element i counts +1 in projection p."""
    return philox_lanes(0, "sketch.param." + name, size, "<u2")


def measure(name: str, value: np.ndarray) -> tuple[float, np.ndarray]:
    """L2 norm and 16 projections of a parameter, summed in float64."""
    flat = value.reshape(-1).astype(np.float64)
    codes = parameter_codes(name, flat.size)
    sums = [np.bincount(half, weights=flat, minlength=256) for half in (codes & 255, codes >> 8)]
    signs = (np.arange(256)[:, None] >> np.arange(8) & 1) * 2.0 - 1.0
    return float(np.sqrt(np.square(flat).sum())), np.concatenate([part @ signs for part in sums])


def measure_all(tensors: dict[str, Tensor], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Norms [n] and projections [n, 16], float32."""
    measured = [measure(name, tensors[name].detach().numpy()) for name in names]
    norms = np.array([norm for norm, _ in measured])
    projections = np.array([projection for _, projection in measured])
    return norms.astype(np.float32), projections.reshape(-1, PROJECTIONS).astype(np.float32)


# --- forward --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Watched:
    """What hooks saw in one forward pass, by layer."""

    picks: dict[int, Tensor] = dataclasses.field(default_factory=dict)  # indexer's output
    experts: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    probs: dict[int, Tensor] = dataclasses.field(default_factory=dict)  # [B,H,S,T]
    indexer: dict[int, tuple] = dataclasses.field(default_factory=dict)  # module, args, kwargs


@contextlib.contextmanager
def watch(model: nn.Module) -> Iterator[Watched]:
    seen = Watched()
    modules = dict(model.named_modules())
    with contextlib.ExitStack() as stack:
        for name, part in find_parts(model).items():
            if part.role in ("indexer", "gate", "attention"):
                hook = functools.partial(_record, seen, part)
                handle = modules[name].register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        yield seen


def _record(
    seen: Watched, part: Part, module: nn.Module, args: tuple, kwargs: dict, out: Any
) -> None:
    if part.role == "indexer":
        seen.picks[part.layer] = out.detach()
        seen.indexer[part.layer] = (module, args, kwargs)
    elif part.role == "gate":
        seen.experts[part.layer] = out[2].detach()  # logits, weights, indices
    else:
        seen.probs[part.layer] = out[1].detach()


def tensors_of(batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def visible_keys(batch: dict[str, Tensor]) -> Tensor:
    """[B, S, T] bool."""
    mask = batch["attention_mask"].bool()
    return torch.ones(mask.shape[1], mask.shape[1]).tril().bool()[None] & mask[:, None, :]


def decisions(seen: Watched, batch: dict[str, Tensor], dense: bool) -> dict[str, np.ndarray]:
    """Taps layers.N.topk (none in dense attention) and layers.N.router.experts, as in goldens."""
    visible, out = visible_keys(batch), {}
    for layer in sorted(seen.picks):
        if not dense:
            picks = seen.picks[layer].long()
            picks = torch.where(visible.gather(2, picks), picks, -1)
            out[f"layers.{layer}.topk"] = sketch.sort_topk(picks.numpy())
        if layer in seen.experts:
            experts = seen.experts[layer].reshape(*visible.shape[:2], -1).sort(dim=-1).values
            out[f"layers.{layer}.router.experts"] = experts.to(torch.int32).numpy()
    return out


def indexer_kl(seen: Watched, batch: dict[str, Tensor], stage: str) -> list[LayerKl]:
    visible = visible_keys(batch)
    out = []
    for layer in sorted(seen.indexer):
        support = visible
        if stage == "sparse":
            chosen = torch.zeros_like(visible).scatter(2, seen.picks[layer].long(), True)
            support = visible & chosen
        scores = index_scores(*seen.indexer[layer])
        out.append(layer_kl(seen.probs[layer], scores, support, batch["attention_mask"]))
    return out


# --- steps ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Step:
    """Forward pass and objective of one step, before backward."""

    lm: Tensor
    kl: Tensor | None
    kl_layers: list[LayerKl]
    decisions: dict[str, np.ndarray]
    seen: Watched


def forward(model: nn.Module, batch: dict[str, Tensor], recipe: Recipe) -> Step:
    """The model's own loss on a batch, and the KL of its indexers when the recipe has one."""
    dense = recipe.kl == "warmup"
    with contextlib.ExitStack() as stack:
        if dense:
            widen_selection(model, batch["input_ids"].shape[1], stack)
        seen = stack.enter_context(watch(model))
        with torch.set_grad_enabled(recipe.lm):
            lm = model(**batch).loss
        layers = indexer_kl(seen, batch, recipe.kl) if recipe.kl != "none" else []
    kl = mean_kl(layers) if layers else None
    return Step(lm, kl, layers, decisions(seen, batch, dense), seen)


def objective(step: Step, recipe: Recipe) -> Tensor:
    parts = [step.lm] if recipe.lm else []
    if step.kl is not None:
        parts.append(recipe.kl_weight * step.kl)
    return torch.stack(parts).sum() if len(parts) > 1 else parts[0]


def total_norm(parameters: list[Tensor]) -> float:
    """Global L2 norm of the gradients, as torch computes it."""
    gradients = [value.grad for value in parameters if value.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


class Log:
    """Collects what each step leaves in the golden."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.series: dict[str, list[float]] = {}
        self.decisions: list[dict[str, np.ndarray]] = []
        self.norms: list[np.ndarray] = []
        self.projections: list[np.ndarray] = []

    def step(
        self,
        values: dict[str, float],
        taken: dict[str, np.ndarray],
        tensors: dict[str, Tensor],
    ) -> None:
        """`tensors`: parameters by name, after the step."""
        for name, value in values.items():
            self.series.setdefault(name, []).append(float(value))
        self.decisions.append(taken)
        norms, projections = measure_all(tensors, self.names)
        self.norms.append(norms)
        self.projections.append(projections)

    def content(
        self,
        attributes: dict[str, str | int],
        band: h5.Band | None = None,
        tensors: dict[str, np.ndarray] | None = None,
    ) -> Content:
        series = {name: np.array(values) for name, values in self.series.items()}
        return Content(
            attributes,
            series,
            self.decisions,
            self.names,
            np.stack(self.norms),
            np.stack(self.projections),
            band,
            tensors or {},
        )


# --- provenance -----------------------------------------------------------------------------------


def attributes(
    suite: str,
    case: synthetic.Case,
    recipe: Recipe,
    loaded: Loaded,
    maker: str,
    **libraries: str,
) -> dict[str, str | int]:
    """Root attributes.

    maker: the module that made the golden. libraries: versions beyond those of every golden.
    """
    environment = environment_of(loaded.model)
    experts = str(loaded.model.config._experts_implementation)
    more = libraries | {"experts_implementation": experts}
    return provenance.of_case(case, {}, loaded.weights, ()) | {
        "format": h5.FORMAT,
        "version": h5.VERSION,
        "suite": suite,
        "recipe": recipe.json,
        "kind": "train",
        "dtype": "float32",
        "mode": "train",
        "mask": "given" if case.mask_given else "none",
        "forced": "false",
        "attn_implementation": "eager",
        "producer": provenance.producer(f"{suite}.{case.name}", maker, environment, **more),
    }
