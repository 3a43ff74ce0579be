"""dual_lora goldens: real peft adapters on a real transformers model (README section 9).

Two adapters on one model: `lm` is driven by the LM loss, `kl` by the indexer's KL of the same
forward pass, each by an AdamW of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import peft
import torch
from hf_probe import Probe, load_eager
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from synthetic import Case, make_batch, weight, weight_specs
from torch import Tensor, nn

RANK, ALPHA = 8, 16
TARGETS = {
    "lm": "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj gate_proj up_proj down_proj",
    "kl": "wq_b wk weights_proj",
}
# The routed experts: fused tensors, not modules.
EXPERT_TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
PREFIX = "base_model.model."
LAST_POSITIONS = 8  # whose logits are kept


class LeakError(Exception):
    """The gradient of one loss reached the other's adapters, or the base weights moved."""


@dataclasses.dataclass
class LoraRun:
    """What one run gave. `parameters` hold each step's result of the caller's `measure`."""

    names: list[str]
    series: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    decisions: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    parameters: list = dataclasses.field(default_factory=list)
    tensors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One A or B of one module."""

    group: str
    tensor: nn.Parameter


@contextlib.contextmanager
def without_expert_conversion() -> Iterator[None]:
    """peft as it was before it renamed targets for transformers 5.

    peft 0.21 takes gate_proj, up_proj and down_proj for the experts of an old checkpoint of this
    model type and moves such adapters from the dense and shared MLPs to the fused routed experts.
    """
    place = "peft.utils.transformers_weight_conversion.convert_peft_config_for_transformers"
    with mock.patch(place, lambda *args, **kwargs: None):
        yield


def attach(model: nn.Module, case: Case, experts: bool = False) -> peft.PeftModel:
    """Both adapters, active and trainable: A of FORMATS section 1, B zero."""
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
            start = torch.from_numpy(weight(case.seed, name, tuple(start.shape)))
        adapter.tensor.data.copy_(start)
    return wrapped


def adapters(wrapped: peft.PeftModel, case: Case) -> dict[str, Adapter]:
    """Stream name (FORMATS section 1) -> adapter, in the order of weight_specs, A before B."""
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


def _module_order(case: Case) -> list[str]:
    """Modules in the order of the C++ weight_specs: o_proj follows the indexer, fused experts stand
    before the shared one."""
    out: list[str] = []
    for name in weight_specs(case.config):
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
    """A model with both adapters and its two optimizers."""

    def __init__(self, model: nn.Module, case: Case, recipe: dict, experts: bool) -> None:
        self.case, self.recipe = case, recipe
        self.wrapped = attach(model, case, experts)
        self.adapters = adapters(self.wrapped, case)
        self.probe = Probe(model)
        self.groups = {
            entry["name"]: [a.tensor for a in self.adapters.values() if a.group == entry["name"]]
            for entry in recipe["groups"]
        }
        self.optimizers = [
            torch.optim.AdamW(
                self.groups[entry["name"]],
                lr=entry["lr"],
                betas=tuple(entry["betas"]),
                eps=entry["eps"],
                weight_decay=entry["weight_decay"],
            )
            for entry in recipe["groups"]
        ]
        self.run = LoraRun(list(self.adapters))
        self.run.series = {name: [] for name in ("loss", "kl", "grad_norm.lm", "grad_norm.kl")}

    def step(self, index: int) -> None:
        """One forward pass, two losses, two optimizers."""
        loss, kl = self.losses(index % 4)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.expect_no_gradient("kl")
        before = [None if p.grad is None else p.grad.clone() for p in self.groups["lm"]]
        (self.recipe["kl_weight"] * kl).backward()
        for old, parameter in zip(before, self.groups["lm"], strict=True):
            if old is None or not torch.equal(old, parameter.grad):
                raise LeakError(f"{self.case.name}: step {index}: the KL reached an LM adapter")
        if index == 0 and self.case.config_name == "tiny":
            self.keep_gradients()
        norms = {group: _total_norm(tensors) for group, tensors in self.groups.items()}
        for optimizer in self.optimizers:
            optimizer.step()
        values = {"loss": loss, "kl": kl} | {f"grad_norm.{g}": n for g, n in norms.items()}
        for name, value in values.items():
            self.run.series[name].append(float(value.detach()))

    def losses(self, batch: int) -> tuple[Tensor, Tensor]:
        out = self.forward(batch, kl=True)
        self.run.decisions.append(self.probe.decisions())
        return out.loss, torch.stack(self.probe.kl_sparse()).mean()

    def forward(self, batch: int, kl: bool = False):  # noqa: ANN201 (a class of transformers)
        tensors = {n: torch.from_numpy(v) for n, v in make_batch(self.case, batch).items()}
        self.probe.begin(tensors["attention_mask"], kl)
        return self.wrapped(**tensors, use_cache=False)

    def expect_no_gradient(self, group: str) -> None:
        if any(p.grad is not None and bool((p.grad != 0).any()) for p in self.groups[group]):
            raise LeakError(f"{self.case.name}: the LM loss reached a {group} adapter")

    def keep_gradients(self) -> None:
        """With B = 0 every A has an exactly zero gradient: only those of B are worth keeping."""
        for name, adapter in self.adapters.items():
            if name.endswith("lora_A.weight"):
                if bool((adapter.tensor.grad != 0).any()):
                    raise LeakError(f"{self.case.name}: {name}: a gradient although B is zero")
            else:
                self.run.tensors[f"grad.{name}"] = adapter.tensor.grad.numpy().copy()

    def finish(self) -> None:
        """Logits and decisions of batch 0, by the adapters and after merging."""
        self.wrapped.eval()
        with torch.no_grad():
            kept = self.forward(0).logits[:, -LAST_POSITIONS:]
            decided = self.probe.decisions()
            self.wrapped = self.wrapped.merge_and_unload(adapter_names=["lm", "kl"])
            merged = self.forward(0).logits[:, -LAST_POSITIONS:]
        self.run.tensors |= {"logits.adapter": kept.numpy(), "logits.merged": merged.numpy()}
        self.run.tensors |= decided
        self.run.tensors |= {
            f"merged.{name}": value
            for name, value in self.probe.decisions().items()
            if not np.array_equal(value, decided[name])
        }


def _total_norm(tensors: list[nn.Parameter]) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in tensors])


def base_digest(wrapped: peft.PeftModel) -> str:
    """Of every tensor that is not an adapter's."""
    total = hashlib.sha256()
    for name, value in sorted(wrapped.state_dict().items()):
        if ".lora_" not in name:
            total.update(name.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()


def train(
    case: Case,
    checkpoint: Path,
    recipe: dict,
    measure: Callable[[dict[str, np.ndarray]], object],
    experts: bool = False,
) -> LoraRun:
    """The whole recipe on the checkpoint of the case. Throws LeakError."""
    lora = DualLora(load_eager(checkpoint), case, recipe, experts)
    start = base_digest(lora.wrapped)
    lora.wrapped.train()
    for index in range(recipe["steps"]):
        lora.step(index)
        values = {name: a.tensor.detach().numpy() for name, a in lora.adapters.items()}
        lora.run.parameters.append(measure(values))
    if base_digest(lora.wrapped) != start:
        raise LeakError(f"{case.name}: base weights moved")
    lora.finish()
    return lora.run
