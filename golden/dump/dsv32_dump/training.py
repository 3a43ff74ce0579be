"""Trains a model by the recipe of a training suite, as the real libraries made the suite's golden.

The losses are the model's own, the optimizer is torch's: what is judged is the fork's training
step, not a trainer. Curves and the last parameters go into the trace.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import torch
from dsv32_trace import canonical_json, check_case, make_batch, unfused
from torch import Tensor, nn

from .errors import Capture, DumpError, ModelCrash, account_of
from .lora import LORA_RATES, LORA_TARGETS, attach_lora, factor_name
from .objective import kl_loss
from .parts import Sizes
from .run import Run
from .settings import Options
from .tensors import keep
from .weights import is_transposed


@dataclasses.dataclass(frozen=True)
class Suite:
    """The recipe of a training golden. AdamW, one group; two with LoRA.

    steps: of the golden of a tiny case, and of any other.
    batches: "cycle4" (step t takes batch t mod 4) or "memorised" (always batch 0).
    lm: the LM loss is part of the objective; kl: the stage of the indexer's KL that is, if any.
    moves: "all", "rest" (the indexer is frozen), "indexer", or "lora".
    """

    steps: tuple[int, int]
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    batches: str = "cycle4"
    lm: bool = True
    kl: str = ""
    kl_weight: float = 1.0
    moves: str = "all"

    def groups(self) -> list[dict[str, Any]]:
        """Each optimizer's name and arguments."""
        shared = {"betas": list(self.betas), "eps": 1e-8, "weight_decay": 0.01}
        if self.moves != "lora":
            return [{"name": "all", "lr": self.lr, **shared}]
        return [{"name": name, "lr": lr, **shared} for name, lr in LORA_RATES.items()]

    def recipe(self, steps: int) -> str:
        """The attribute `recipe` of the golden, by which the judge finds it."""
        fields = {key: getattr(self, key) for key in ("batches", "clip", "kl_weight", "lm")}
        fields |= {"accumulation": 1, "world": 1, "steps": steps, "kl": self.kl or "none"}
        return canonical_json(fields | {"groups": self.groups()})


SUITES = {
    "loss_descent": Suite((50, 20)),
    "loss_descent_memorised": Suite(
        (50, 20), lr=1e-4, betas=(0.9, 0.999), clip=None, batches="memorised"
    ),
    "sft_frozen_indexer": Suite((20, 20), lr=1e-4, moves="rest"),
    "indexer_kl_warmup": Suite((50, 10), clip=None, lm=False, kl="warmup", moves="indexer"),
    "indexer_kl_sparse": Suite((50, 10), clip=None, lm=False, kl="sparse", moves="indexer"),
    "indexer_kl_joint": Suite((20, 10), clip=None, kl="sparse", kl_weight=0.1),
    "dual_lora": Suite((20, 10), clip=None, kl="sparse", moves="lora"),
}


def train(model: nn.Module, case: dict[str, Any], options: Options) -> Capture:
    """Trains `model` by the recipe of `options.suite`, in place.

    Taps: train.loss, train.grad_norm, train.kl [steps], every parameter after the last step
    (param.*; with LoRA the merged weights), and what the first two steps and the last added to each
    (step.N.update.*; with LoRA to each factor). Throws as `capture` does.
    """
    case = check_case(case, "case")
    return Training(model, case, options.of_case(case)).run()


class Training:
    """One training run: who moves, step by step."""

    def __init__(self, model: nn.Module, case: dict[str, Any], options: Options) -> None:
        if options.chunks:
            got = f"chunks {list(options.chunks)}"
            raise DumpError(2, "train", "case", "a case of one pass", got)
        self.model, self.case, self.options = model, case, options
        self.suite = SUITES[options.suite]
        usual = self.suite.steps[0 if case["config"] == "tiny" else 1]
        self.steps = usual if options.steps is None else options.steps
        self.sizes = Sizes.of(model.config)
        self.series: dict[str, list[float]] = {"train.loss": [], "train.grad_norm": []}
        if self.suite.kl:
            self.series["train.kl"] = []
        self.out = Capture()
        self.phase = "setup"

    def run(self) -> Capture:
        """The whole training. Throws as `capture` does; the curve until a crash is kept."""
        first = self.pass_of(0, self.suite.kl)
        recipe = self.suite.recipe(self.steps)
        self.out.metadata = first.describe(first.recorder())
        self.out.metadata |= {"mode": "train", "suite": self.options.suite, "recipe": recipe}
        with contextlib.ExitStack() as undo:
            first.settings(undo)
            self.model.train()
            try:
                self.train()
            except DumpError:
                raise
            except Exception as error:  # the model's own code may raise anything
                self.out.failure = account_of(error, self.phase)
                raise ModelCrash(self.out) from error
            finally:
                self.keep_series()
        self.keep_parameters()
        return self.out

    def pass_of(self, index: int, kl: str = "") -> Run:
        """A pass over batch `index` that keeps no tap, for its losses."""
        batch = make_batch(self.case, self.sizes.vocab, index)
        changes = {"suite": "", "kl": kl, "backward": False, "taps": (), "batch": batch}
        return Run(self.model, self.case, dataclasses.replace(self.options, **changes))

    def train(self) -> None:
        """All steps, from the weights that the model has."""
        wrapped = attach_lora(self.model, self.case["seed"]) if self.suite.moves == "lora" else None
        groups = self.parameters()
        optimizers = [torch.optim.AdamW(groups[o.pop("name")], **o) for o in self.suite.groups()]
        for index in range(self.steps):
            self.phase = f"training step {index}"
            kept = index in (0, 1, self.steps - 1)
            moving = self.weights if wrapped is None else self.factors
            before = moving() if kept else {}
            self.step(0 if self.suite.batches == "memorised" else index % 4, groups, optimizers)
            for name, value in moving().items() if kept else ():
                tap = f"step.{index}.update.{name}"
                if self.options.wanted(tap):
                    self.out.taps[tap] = value - before[name]
        if wrapped is not None:
            wrapped.merge_and_unload(adapter_names=list(LORA_TARGETS))

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """What each optimizer moves, by the name of its group."""
        trained: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            indexer = ".indexer." in name
            if self.suite.moves == "lora":
                if parameter.requires_grad:
                    trained.setdefault("kl" if indexer else "lm", []).append(parameter)
                continue
            moves = {"all": True, "rest": not indexer, "indexer": indexer}[self.suite.moves]
            parameter.requires_grad_(moves and parameter.is_floating_point())
            trained.setdefault("all", []).extend([parameter] if moves else [])
        return trained

    def step(
        self,
        batch: int,
        groups: dict[str, list[nn.Parameter]],
        optimizers: list[torch.optim.Optimizer],
    ) -> None:
        """Losses on one batch, backward passes, clipping, and a step of every optimizer."""
        self.model.zero_grad(set_to_none=True)
        with torch.enable_grad() if self.suite.lm else torch.no_grad():
            loss = self.pass_of(batch).lm_loss()
        if loss is None:
            raise DumpError(4, "train", "loss", "a loss from the model", "none")
        if self.suite.lm:
            loss.backward()
        self.series["train.loss"].append(float(loss.detach()))
        if self.suite.kl:
            kl = kl_loss(self.pass_of(batch, self.suite.kl))
            (self.suite.kl_weight * kl).backward()
            self.series["train.kl"].append(float(kl.detach()))
        limit = math.inf if self.suite.clip is None else self.suite.clip
        norms = {name: nn.utils.clip_grad_norm_(group, limit) for name, group in groups.items()}
        told = norms["lm" if self.suite.moves == "lora" else "all"]
        self.series["train.grad_norm"].append(float(told))
        for optimizer in optimizers:
            optimizer.step()

    def keep_series(self) -> None:
        for name, values in self.series.items():
            if values and self.options.wanted(name):
                self.out.taps[name] = torch.tensor(values, dtype=torch.float64)

    def weights(self) -> dict[str, Tensor]:
        """Every parameter as it is now, by its name in the checkpoint."""
        found = {}
        for name, parameter in self.model.named_parameters():
            transposed = is_transposed(self.model, name)
            for part, value in unfused(name, parameter, self.sizes.hidden, transposed):
                found[part] = keep(value).contiguous().clone()
        return found

    def factors(self) -> dict[str, Tensor]:
        """Every LoRA factor as it is now, by its name without peft's prefix and adapter name."""
        named = ((factor_name(name), value) for name, value in self.model.named_parameters())
        return {name: keep(value).contiguous().clone() for name, value in named if name}

    def keep_parameters(self) -> None:
        for name, value in self.weights().items():
            if self.options.wanted(f"param.{name}"):
                self.out.taps[f"param.{name}"] = value
