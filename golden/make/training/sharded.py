"""sharded goldens: real DeepSpeed ZeRO-2 on CPU ranks, and the same steps on one process.

Ranks take contiguous rows, micro-batches contiguous rows of those; the gradient is the mean over
ranks and micro-batches of each one's own mean loss (DeepSpeed's rule). docs/formats.md.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import synthetic
import torch
from real import Loaded
from torch import Tensor, nn

from training import run
from training.h5 import Content
from training.lm import names_of
from training.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class World:
    """What every rank is given."""

    case: synthetic.Case
    recipe: Recipe
    folder: Path  # ranks meet here and leave their results

    @property
    def rows(self) -> int:
        """Of one micro-batch."""
        return self.case.B // (self.recipe.world * self.recipe.accumulation)

    def micro_batches(self, rank: int, step: int) -> Iterator[dict[str, Tensor]]:
        whole = synthetic.make_batch(self.case, self.recipe.batch_index(step))
        for part in range(self.recipe.accumulation):
            first = (rank * self.recipe.accumulation + part) * self.rows
            yield run.tensors_of({n: v[first : first + self.rows] for n, v in whole.items()})


def student(world: World) -> Loaded:
    """The model as every process trains it."""
    loaded = run.load(world.case)
    torch.set_num_threads(1)
    run.freeze(loaded.model, indexer=True)
    return loaded


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [value for value in model.parameters() if value.requires_grad]


def optimizer_of(world: World, model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(trainable(model), **world.recipe.groups[0].options)


def join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Decisions of consecutive rows."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def settings(world: World) -> dict[str, Any]:
    """DeepSpeed's."""
    return {
        "train_batch_size": world.case.B,
        "train_micro_batch_size_per_gpu": world.rows,
        "gradient_accumulation_steps": world.recipe.accumulation,
        "gradient_clipping": world.recipe.clip,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }


@dataclasses.dataclass
class RankStep:
    """One step as one rank saw it."""

    losses: list[float]  # of its micro-batches
    norm: float  # global, before clipping
    decisions: dict[str, np.ndarray]


def rank_process(rank: int, world: World) -> None:
    """One process of the world. It leaves a list of RankStep, rank 0 also every step's sketch."""
    size = str(world.recipe.world)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": size, "LOCAL_SIZE": size, "DS_ACCELERATOR": "cpu"}
    import deepspeed  # reads the environment when it is imported

    # Without it DeepSpeed compiles an all-reduce of its own; gloo's is enough.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    meeting = f"file://{world.folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=int(size))
    model = student(world).model
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer_of(world, model),
        config=settings(world),
        dist_init_required=False,
    )
    log = run.Log(names_of(world.case))
    steps = []
    for index in range(world.recipe.steps):
        steps.append(rank_step(rank, world, engine, index))
        if rank == 0:
            log.step({}, {}, run.checkpoint_tensors(model))
    result = (steps, log.norms, log.projections)
    (world.folder / f"rank{rank}").write_bytes(pickle.dumps(result))
    torch.distributed.destroy_process_group()


def rank_step(rank: int, world: World, engine: Any, index: int) -> RankStep:
    losses, decided = [], []
    for batch in world.micro_batches(rank, index):
        with run.watch(engine.module) as seen:
            loss = engine(**batch).loss
        engine.backward(loss)
        engine.step()  # moves the weights after the last micro-batch only
        losses.append(float(loss.detach()))
        decided.append(run.decisions(seen, batch, dense=False))
    return RankStep(losses, float(engine.get_global_grad_norm()), join(decided))


def unsharded(world: World, model: nn.Module) -> dict[str, list[float]]:
    """One process: the same mean of means, torch's clipping and AdamW."""
    optimizer = optimizer_of(world, model)
    series: dict[str, list[float]] = {"unsharded.loss": [], "unsharded.grad_norm": []}
    for index in range(world.recipe.steps):
        optimizer.zero_grad()
        losses = []
        for rank in range(world.recipe.world):
            for batch in world.micro_batches(rank, index):
                loss = model(**batch).loss
                (loss / (world.recipe.world * world.recipe.accumulation)).backward()
                losses.append(float(loss.detach()))
        norm = nn.utils.clip_grad_norm_(trainable(model), world.recipe.clip)
        optimizer.step()
        series["unsharded.loss"].append(float(np.mean(losses)))
        series["unsharded.grad_norm"].append(float(norm))
    return series


def make(suite: str, recipe: Recipe, case: synthetic.Case) -> Content:
    log = run.Log(names_of(case))
    with tempfile.TemporaryDirectory() as folder:
        world = World(case, recipe, Path(folder))
        torch.multiprocessing.spawn(rank_process, (world,), nprocs=recipe.world)
        results = [
            pickle.loads((world.folder / f"rank{rank}").read_bytes())
            for rank in range(recipe.world)
        ]
    _, log.norms, log.projections = results[0]
    steps = list(zip(*(steps for steps, _, _ in results), strict=True))
    log.decisions = [join([rank.decisions for rank in step]) for step in steps]
    log.series = {
        "loss": [float(np.mean([rank.losses for rank in step])) for step in steps],
        "grad_norm": [step[0].norm for step in steps],
    }
    loaded = student(world)
    log.series |= unsharded(world, loaded.model)
    version = importlib.metadata.version("deepspeed")
    return log.content(run.attributes(suite, case, recipe, loaded, __name__, deepspeed=version))


RECIPES = {
    ("sharded", "tiny-shard"): Recipe(4, world=2),
    ("sharded", "small-train"): Recipe(2, world=2),
    ("sharded_accum3", "tiny-shard"): Recipe(4, world=2, accumulation=3),
}
JOBS = [
    run.Job(suite, case, functools.partial(make, suite, recipe))
    for (suite, case), recipe in RECIPES.items()
]
