"""Goldens of indexer training: indexer_kl_warmup (Eq. 3), indexer_kl_sparse (Eq. 4) and joint."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import synthetic
import torch
from real import GoldenError
from torch import nn

from training import indexer_kl, run
from training.h5 import Content
from training.recipe import Recipe

JOINT_WEIGHT = 0.1


def is_buffer(name: str) -> bool:
    return name.endswith("e_score_correction_bias")


def names_of(case: synthetic.Case, recipe: Recipe) -> list[str]:
    """What moves: the indexer, with an LM loss everything."""
    specs = synthetic.weight_specs(case.config)
    return [name for name in specs if (recipe.lm or ".indexer." in name) and not is_buffer(name)]


def backward(model: nn.Module, step: run.Step, recipe: Recipe) -> None:
    """Gradients of the objective; refuses a KL that reaches anything but the indexer."""
    model.zero_grad(set_to_none=True)
    (recipe.kl_weight * step.kl).backward()
    reached = [name for name in run.checkpoint_gradients(model) if ".indexer." not in name]
    if reached:
        raise GoldenError(f"the KL has a gradient of {reached}")
    if recipe.lm:
        before = {n: g.clone() for n, g in run.checkpoint_gradients(model).items()}
        step.lm.backward()
        after = run.checkpoint_gradients(model)
        if not all(torch.equal(after[name], value) for name, value in before.items()):
            raise GoldenError("the LM loss has a gradient of the indexer")


def train(
    model: nn.Module, case: synthetic.Case, recipe: Recipe, log: run.Log
) -> dict[str, np.ndarray]:
    """Trains in place; the taps and indexer gradients of step 0."""
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, **recipe.groups[0].options)
    first: dict[str, np.ndarray] = {}
    for index in range(recipe.steps):
        batch = run.tensors_of(synthetic.make_batch(case, recipe.batch_index(index)))
        step = run.forward(model, batch, recipe)
        backward(model, step, recipe)
        if index == 0:
            first = indexer_kl.kl_taps(step.kl_layers) | indexer_gradients(model)
        values = {"kl": float(step.kl.detach()), "grad_norm": run.total_norm(trained)}
        if recipe.lm:
            values["loss"] = float(step.lm.detach())
        optimizer.step()
        log.step(values, step.decisions, run.checkpoint_tensors(model))
    return first


def indexer_gradients(model: nn.Module) -> dict[str, np.ndarray]:
    gradients = run.checkpoint_gradients(model)
    return {
        f"grad.{name}": value.numpy().copy()
        for name, value in gradients.items()
        if ".indexer." in name
    }


def make(suite: str, case: synthetic.Case) -> Content:
    return golden(suite, case, RECIPES[suite][case.name])


def first_steps(suite: str, case: synthetic.Case, steps: int) -> Content:
    """The same run cut short."""
    return golden(suite, case, dataclasses.replace(RECIPES[suite][case.name], steps=steps))


def golden(suite: str, case: synthetic.Case, recipe: Recipe) -> Content:
    loaded = run.load(case)
    if not recipe.lm:
        run.freeze(loaded.model, indexer=False)
    log = run.Log(names_of(case, recipe))
    first = train(loaded.model, case, recipe, log)
    kept = first if case.config_name == "tiny" else {}
    return log.content(run.attributes(suite, case, recipe, loaded, __name__), tensors=kept)


def alone(steps: int, stage: str) -> Recipe:
    return Recipe(steps, clip=None, kl=stage, lm=False)


RECIPES = {
    "indexer_kl_warmup": {"tiny-wide": alone(50, "warmup"), "small-train": alone(10, "warmup")},
    "indexer_kl_sparse": {"tiny-wide": alone(50, "sparse"), "small-train": alone(10, "sparse")},
    "indexer_kl_joint": {
        "tiny-wide": Recipe(20, clip=None, kl="sparse", kl_weight=JOINT_WEIGHT),
    },
}
JOBS = [
    run.Job(suite, case, functools.partial(make, suite))
    for suite, cases in RECIPES.items()
    for case in cases
]
