"""sharded goldens: real DeepSpeed ZeRO-2 on CPU ranks, and the same steps on one process.

Ranks take contiguous rows, micro-batches contiguous rows of those; the gradient is the mean over
ranks and micro-batches of each one's own mean loss (DeepSpeed's rule).
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dump
import numpy as np
import torch
from hf_probe import Probe, load_eager
from synthetic import Case, is_trainable, make_batch, weight_specs
from torch import nn


@dataclasses.dataclass
class ShardedRun:
    """What both runs gave. `parameters` hold each step's result of the caller's `measure`."""

    names: list[str]
    series: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    decisions: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    parameters: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class World:
    """What every rank is given."""

    case: Case
    checkpoint: Path
    recipe: dict
    folder: Path  # ranks meet here and leave their results

    def micro_batch(self, rank: int, part: int, batch: int) -> dict[str, torch.Tensor]:
        """Contiguous rows of the whole batch."""
        rows = self.case.B // (self.recipe["world"] * self.recipe["accumulation"])
        first = (rank * self.recipe["accumulation"] + part) * rows
        whole = make_batch(self.case, batch)
        return {name: torch.from_numpy(v[first : first + rows]) for name, v in whole.items()}

    def batch_index(self, step: int) -> int:
        return 0 if self.recipe["batches"] == "memorised" else step % 4


class Student:
    """A model under the LM loss: forward passes, their decisions, its parameters."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.model = load_eager(world.checkpoint).train()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(".indexer." not in name)  # no part of the LM loss
        self.probe = Probe(self.model)
        self.decided: list[dict[str, np.ndarray]] = []

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def optimizer(self) -> torch.optim.AdamW:
        group = self.world.recipe["groups"][0]
        return torch.optim.AdamW(
            self.trainable(),
            lr=group["lr"],
            betas=tuple(group["betas"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )

    def loss(self, forward: Callable[..., Any], tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        self.probe.begin(tensors["attention_mask"])
        loss = forward(**tensors, use_cache=False).loss
        self.decided.append(self.probe.decisions())
        return loss

    def take_decisions(self) -> dict[str, np.ndarray]:
        """Of every pass since the last call, rows joined."""
        parts, self.decided = self.decided, []
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def parameters(self) -> dict[str, np.ndarray]:
        """Trainable ones, under the checkpoint's names."""
        found = dump.loaded_tensors(self.model, self.world.case.config["hidden_size"])
        names = filter(is_trainable, weight_specs(self.world.case.config))
        return {name: found[name].detach().numpy() for name in names}


def _settings(world: World) -> dict[str, Any]:
    recipe, case = world.recipe, world.case
    return {
        "train_batch_size": case.B,
        "train_micro_batch_size_per_gpu": case.B // (recipe["world"] * recipe["accumulation"]),
        "gradient_accumulation_steps": recipe["accumulation"],
        "gradient_clipping": recipe["clip"],
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }


def _rank(rank: int, world: World) -> None:
    """One process of the world. Its results: a pickle, and rank 0's parameters of each step."""
    size = world.recipe["world"]
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(size), "LOCAL_SIZE": str(size)}
    import deepspeed  # reads the environment when it is imported

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    meeting = f"file://{world.folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=size)
    student = Student(world)
    engine, *_ = deepspeed.initialize(
        model=student.model,
        optimizer=student.optimizer(),
        config=_settings(world),
        dist_init_required=False,
    )
    steps = []
    for step in range(world.recipe["steps"]):
        losses = []
        for part in range(world.recipe["accumulation"]):
            tensors = world.micro_batch(rank, part, world.batch_index(step))
            loss = student.loss(engine, tensors)
            engine.backward(loss)
            engine.step()  # moves the weights after the last micro-batch
            losses.append(float(loss.detach()))
        norm = float(engine.get_global_grad_norm())
        steps.append((losses, norm, student.take_decisions()))
        if rank == 0:
            np.savez(world.folder / f"step{step}.npz", **student.parameters())
    (world.folder / f"rank{rank}").write_bytes(pickle.dumps(steps))
    torch.distributed.destroy_process_group()


def _unsharded(world: World) -> dict[str, list[float]]:
    """One process, the same mean of means, torch's clipping and AdamW."""
    student = Student(world)
    optimizer = student.optimizer()
    parts = [(r, p) for r in range(world.recipe["world"]) for p in range(_accumulation(world))]
    series: dict[str, list[float]] = {"unsharded.loss": [], "unsharded.grad_norm": []}
    for step in range(world.recipe["steps"]):
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for rank, part in parts:
            tensors = world.micro_batch(rank, part, world.batch_index(step))
            loss = student.loss(student.model, tensors)
            (loss / len(parts)).backward()
            losses.append(float(loss.detach()))
        norm = nn.utils.clip_grad_norm_(student.trainable(), world.recipe["clip"])
        optimizer.step()
        series["unsharded.loss"].append(float(np.mean(losses)))
        series["unsharded.grad_norm"].append(float(norm))
    return series


def _accumulation(world: World) -> int:
    return world.recipe["accumulation"]


def train(
    case: Case,
    checkpoint: Path,
    recipe: dict,
    measure: Callable[[dict[str, np.ndarray]], object],
) -> ShardedRun:
    """The whole recipe on the checkpoint of the case. Throws when a rank does."""
    run = ShardedRun(list(filter(is_trainable, weight_specs(case.config))))
    with tempfile.TemporaryDirectory() as folder:
        world = World(case, checkpoint, recipe, Path(folder))
        torch.multiprocessing.spawn(_rank, (world,), nprocs=recipe["world"])
        ranks = [
            pickle.loads((world.folder / f"rank{r}").read_bytes()) for r in range(recipe["world"])
        ]
        for step in range(recipe["steps"]):
            with np.load(world.folder / f"step{step}.npz") as stored:
                run.parameters.append(measure({name: stored[name] for name in run.names}))
    run.series = {"loss": [], "grad_norm": []}
    for results in zip(*ranks, strict=True):
        run.series["loss"].append(float(np.mean([losses for losses, _, _ in results])))
        run.series["grad_norm"].append(results[0][1])
        decided = [decisions for _, _, decisions in results]
        run.decisions.append({n: np.concatenate([d[n] for d in decided]) for n in decided[0]})
    run.series |= _unsharded(world)
    return run
