"""One training run of real transformers: model, objective, decisions, parameters after each step.

Used by the suite modules (training_lm.py and its like), which choose recipes and optimizers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dsv32_dump as dump
import generate
import numpy as np
import sketch
import synthetic
import torch
from torch import Tensor, nn
from training.h5 import PROJECTIONS, Content
from training.indexer_kl import LayerKl, index_scores, layer_kl, mean_kl
from training.recipe import Recipe

from training import h5

# Taken at import, like the code itself: an edit during the run is not what made the golden.
SOURCES = {
    file: generate.sha256(synthetic.ROOT / "golden" / "make" / file)
    for file in (
        "training/generate.py training/run.py training/recipe.py training/h5.py "
        "training/indexer_kl.py training/lm.py training/kl.py training/lora.py "
        "training/sharded.py ../dump/dsv32_dump/__init__.py synthetic.py sketch.py h5file.py "
        "generate.py"
    ).split()
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One training golden. once: why it is not made twice."""

    suite: str
    case: str
    make: Callable[[synthetic.Case], Content]
    once: str = ""

    @property
    def name(self) -> str:
        return f"{self.suite}.{self.case}"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model as from_pretrained gave it, and what its weights were compared with."""

    model: nn.Module
    weights: dict[str, Any]  # as dump.compare_weights says it


def load(case: synthetic.Case) -> Loaded:
    """The case's checkpoint opened by real transformers: float32, eager, deterministic."""
    transformers = dump.import_transformers(None)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Tensors of tiny cases are too small to be split: one thread, the same bits, no waiting.
    torch.set_num_threads(1 if case.config_name == "tiny" else generate.THREADS)
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as folder:
        synthetic.write_checkpoint(case, Path(folder))
        words = ["--checkpoint", folder, "--out", folder, "--attn", "eager", "--dtype", "float32"]
        model = dump.load_model(transformers, dump.parse_arguments(words))
        weights = dump.compare_weights(model, dump.Checkpoint(Path(folder)))
    generate.check_loaded(case, weights)
    model.set_experts_implementation("eager")
    model.config.use_cache = False  # an indexer that runs a second time must not append its keys
    return Loaded(model.train(), weights)


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
    transposed = dump.is_transposed(model, name)
    return dict(dump.checkpoint_views(name, value, model.config.hidden_size, transposed))


def freeze(model: nn.Module, indexer: bool) -> None:
    """Freezes the indexer, or everything but the indexer."""
    for name, value in model.named_parameters():
        value.requires_grad_((".indexer." in name) != indexer)


@functools.cache
def parameter_codes(name: str, size: int) -> np.ndarray:
    """[size] uint16: bit p is 1 where element i counts +1 in projection p."""
    words = synthetic.philox_words(0, "sketch.param." + name, -(-size // 4))
    return words.view("<u2")[:size]


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
        for name, part in dump.find_parts(model).items():
            if part.role in ("indexer", "gate", "attention"):
                hook = functools.partial(_record, seen, part)
                handle = modules[name].register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        yield seen


def _record(
    seen: Watched, part: dump.Part, module: nn.Module, args: tuple, kwargs: dict, out: Any
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
            dump._widen_selection(model, batch["input_ids"].shape[1], stack)
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
    suite: str, case: synthetic.Case, recipe: Recipe, loaded: Loaded, libraries: dict[str, str]
) -> dict[str, str | int]:
    """Root attributes. `libraries`: versions beyond those of every golden (peft, deepspeed)."""
    config = dump.canonical_json(case.config)
    return {
        "format": h5.FORMAT,
        "version": h5.VERSION,
        "suite": suite,
        "recipe": recipe.json,
        "case_name": case.name,
        "case": case.json,
        "kind": "train",
        "dialect": "hf",
        "dtype": "float32",
        "mode": "train",
        "mask": "given" if case.mask_given else "none",
        "forced": "false",
        "attn_implementation": "eager",
        "config": config,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "weights": f"synthetic:{case.seed}",
        "weights_loaded": dump.canonical_json(loaded.weights),
        "seed": case.seed,
        "producer": producer(suite, case, loaded.model, libraries),
    }


def producer(suite: str, case: synthetic.Case, model: nn.Module, libraries: dict[str, str]) -> str:
    environment = dump.environment(model)
    kept = ("transformers", "torch", "numpy", "python", "safetensors", "model_class", "device")
    document = {key: environment[key] for key in (*kept, "modeling_sha256", "threads")} | {
        "command": f"golden/generate_training.py --golden {suite}.{case.name}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "experts_implementation": str(model.config._experts_implementation),
        "h5py": generate.h5py.__version__,
        "hdf5": generate.h5py.version.hdf5_version,
        "sources": SOURCES,
        "tool": "golden/generate_training.py",
    }
    return dump.canonical_json(document | libraries)
