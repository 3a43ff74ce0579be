"""dual_lora goldens: real peft adapters on a real transformers model (docs/formats.md).

Two adapters on one model: `lm` is driven by the LM loss, `kl` by the indexer's KL of the same
forward pass, each by an AdamW of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
import peft
import synthetic
import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.utils import transformers_weight_conversion
from real import GoldenError
from torch import Tensor, nn

from training import run
from training.h5 import Content
from training.recipe import Group, Recipe

RANK, ALPHA = 8, 16
TARGETS = {
    "lm": "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj gate_proj up_proj down_proj",
    "kl": "wq_b wk weights_proj",
}
# The routed experts: fused tensors, not modules.
EXPERT_TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
PREFIX = "base_model.model."
LAST_POSITIONS = 8  # whose logits are kept


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A or B of one module."""

    group: str
    tensor: nn.Parameter


@contextlib.contextmanager
def without_expert_conversion() -> Iterator[None]:
    """peft without what it does to targets named gate_proj, up_proj and down_proj.

    peft 0.21 takes them for the experts of an old checkpoint of this model type and moves such
    adapters from the dense and shared MLPs to the fused routed experts.
    """
    with mock.patch.dict(transformers_weight_conversion._MODEL_TO_CONVERSION_PATTERN) as patterns:
        patterns.pop("deepseek_v32")
        yield


def attach(model: nn.Module, case: synthetic.Case, experts: bool) -> peft.PeftModel:
    """Both adapters, active and trainable: A synthetic like the weights, B zero."""
    config = {
        group: peft.LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            target_modules=targets.split(),
            target_parameters=EXPERT_TARGETS if experts and group == "lm" else None,
        )
        for group, targets in TARGETS.items()
    }
    with without_expert_conversion():
        wrapped = peft.get_peft_model(model, config["lm"], adapter_name="lm")
        wrapped.add_adapter("kl", config["kl"])
    wrapped.base_model.set_adapter(["lm", "kl"])
    for name, adapter in adapters(wrapped, case).items():
        start = torch.zeros_like(adapter.tensor)
        if name.endswith("lora_A.weight"):
            start = torch.from_numpy(synthetic.weight(case.seed, name, tuple(start.shape)))
        adapter.tensor.data.copy_(start)
    return wrapped


def adapters(wrapped: peft.PeftModel, case: synthetic.Case) -> dict[str, Adapter]:
    """Stream name (docs/formats.md) -> adapter, in the order of weight_specs, A before B."""
    found: dict[str, Adapter] = {}
    for path, module in wrapped.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        path = path.removeprefix(PREFIX).replace(".base_layer", "")  # wrapped twice: two tensors
        if isinstance(module, ParamWrapper):
            path += "." + module.parameter_name
        for group in module.lora_A:
            for side in ("A", "B"):
                tensor = getattr(module, f"lora_{side}")[group].weight
                found[f"{path}.lora_{side}.weight"] = Adapter(group, tensor)
    rank = {name: number for number, name in enumerate(_module_order(case))}
    return {name: found[name] for name in sorted(found, key=lambda n: (rank[n[:-14]], n))}


def _module_order(case: synthetic.Case) -> list[str]:
    """Modules in the order of the C++ weight_specs: o_proj follows the indexer, fused experts stand
    before the shared one."""
    out: list[str] = []
    for name in synthetic.weight_specs(case.config):
        module = name.removesuffix(".weight")
        if ".experts.0.gate_proj" in module:
            fused = module.replace(".0.gate_proj", "")
            out += [f"{fused}.gate_up_proj", f"{fused}.down_proj"]
        elif module.endswith("indexer.weights_proj"):
            out += [module, out.pop(out.index(module.replace("indexer.weights_proj", "o_proj")))]
            continue
        out.append(module)
    return out


class DualLora:
    """A model with both adapters and their optimizers."""

    def __init__(
        self, model: nn.Module, case: synthetic.Case, recipe: Recipe, experts: bool
    ) -> None:
        self.model, self.case, self.recipe = model, case, recipe
        self.wrapped = attach(model, case, experts)
        self.adapters = adapters(self.wrapped, case)
        self.groups = {
            group.name: [a.tensor for a in self.adapters.values() if a.group == group.name]
            for group in recipe.groups
        }
        self.optimizers = [
            torch.optim.AdamW(self.groups[group.name], **group.options) for group in recipe.groups
        ]
        self.log = run.Log(list(self.adapters))
        self.gradients: dict[str, np.ndarray] = {}  # of step 0

    def step(self, index: int) -> None:
        """One forward pass, two losses, two optimizers."""
        step = self.forward(self.recipe.batch_index(index))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        step.lm.backward(retain_graph=True)  # a KL that leaks shall be named, not crash
        self.expect_zero(self.groups["kl"], f"step {index}: the LM loss reached a KL adapter")
        alone = [value.grad.clone() for value in self.groups["lm"]]
        (self.recipe.kl_weight * step.kl).backward()
        added = zip(self.groups["lm"], alone, strict=True)
        if not all(torch.equal(value.grad, old) for value, old in added):
            raise GoldenError(f"{self.case.name}: step {index}: the KL reached an LM adapter")
        if index == 0:
            self.keep_gradients()
        norms = {f"grad_norm.{g}": run.total_norm(values) for g, values in self.groups.items()}
        for optimizer in self.optimizers:
            optimizer.step()
        losses = {"loss": float(step.lm.detach()), "kl": float(step.kl.detach())}
        tensors = {name: adapter.tensor for name, adapter in self.adapters.items()}
        self.log.step(losses | norms, step.decisions, tensors)

    def forward(self, batch: int) -> run.Step:
        tensors = run.tensors_of(synthetic.make_batch(self.case, batch))
        return run.forward(self.model, tensors, self.recipe)

    def expect_zero(self, tensors: list[Tensor], otherwise: str) -> None:
        if any(value.grad is not None and bool((value.grad != 0).any()) for value in tensors):
            raise GoldenError(f"{self.case.name}: {otherwise}")

    def keep_gradients(self) -> None:
        """With B = 0 every A has an exactly zero gradient: only those of B are worth keeping."""
        sides = {side: [n for n in self.adapters if f"lora_{side}." in n] for side in "AB"}
        first = [self.adapters[name].tensor for name in sides["A"]]
        self.expect_zero(first, "an A has a gradient although B is zero")
        self.gradients = {
            f"grad.{name}": self.adapters[name].tensor.grad.numpy().copy() for name in sides["B"]
        }

    def finish(self) -> dict[str, np.ndarray]:
        """Logits and decisions of batch 0, by the adapters and after merging."""
        logits, decided = self.judge_batch()
        self.wrapped.merge_and_unload(adapter_names=["lm", "kl"])
        if any(isinstance(module, LoraLayer) for module in self.model.modules()):
            raise GoldenError(f"{self.case.name}: an adapter is left after merging")
        merged, decided_merged = self.judge_batch()
        other = {
            f"merged.{name}": value
            for name, value in decided_merged.items()
            if not np.array_equal(value, decided[name])
        }
        return {"logits.adapter": logits, "logits.merged": merged} | decided | other

    def judge_batch(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        batch = run.tensors_of(synthetic.make_batch(self.case, 0))
        with torch.no_grad(), run.watch(self.model) as seen:
            logits = self.model(**batch).logits
        kept = logits[:, -LAST_POSITIONS:].contiguous().numpy()
        return kept, run.decisions(seen, batch, dense=False)


def base_digest(model: nn.Module) -> str:
    """Of every tensor that is not an adapter's."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if ".lora_" not in name:
            total.update(name.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()


SUITES = {"dual_lora": False, "dual_lora_experts": True}  # whether routed experts have adapters
GROUPS = (Group("lm", lr=1e-4), Group("kl", lr=1e-3))


def recipe_of(steps: int) -> Recipe:
    return Recipe(steps, GROUPS, clip=None, kl="sparse")


def make(suite: str, steps: int, case: synthetic.Case) -> Content:
    loaded, recipe = run.load(case), recipe_of(steps)
    lora = DualLora(loaded.model, case, recipe, SUITES[suite])
    start = base_digest(lora.model)
    for index in range(steps):
        lora.step(index)
    if base_digest(lora.model) != start:
        raise GoldenError(f"{case.name}: base weights moved")
    tensors = lora.finish() | (lora.gradients if case.config_name == "tiny" else {})
    attributes = run.attributes(suite, case, recipe, loaded, __name__, peft=peft.__version__)
    return lora.log.content(attributes, tensors=tensors)


STEPS = {
    ("dual_lora", "tiny-wide"): 20,
    ("dual_lora", "small-train"): 10,
    ("dual_lora_experts", "tiny-wide"): 5,
}
JOBS = [
    run.Job(suite, case, functools.partial(make, suite, steps))
    for (suite, case), steps in STEPS.items()
]
