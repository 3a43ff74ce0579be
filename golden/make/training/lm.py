"""LM training goldens: loss_descent, loss_descent_memorised, sft_frozen_indexer."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import synthetic
import torch
from dsv32_trace import philox_lanes
from torch import nn

from training import run
from training.h5 import COMPONENTS, Band, Content
from training.recipe import Group, Recipe

RUNS = 64
DEFAULT = Group()
SFT = Group(lr=1e-4)
MEMORISED = Group(lr=1e-4, betas=(0.9, 0.999))


def names_of(case: synthetic.Case) -> list[str]:
    return [name for name in synthetic.weight_specs(case.config) if synthetic.is_trainable(name)]


def train(model: nn.Module, case: synthetic.Case, recipe: Recipe, log: run.Log | None) -> list:
    """Trains `model` in place; the losses. With a log: everything else too."""
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, **recipe.groups[0].options)
    limit = recipe.clip if recipe.clip is not None else torch.inf
    losses = []
    for index in range(recipe.steps):
        batch = run.tensors_of(synthetic.make_batch(case, recipe.batch_index(index)))
        step = run.forward(model, batch, recipe) if log else None
        loss = step.lm if step else model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, limit)
        optimizer.step()
        losses.append(float(loss.detach()))
        if log:
            values = {"loss": losses[-1], "grad_norm": float(norm)}
            log.step(values, step.decisions, run.checkpoint_tensors(model))
    return losses


def perturb(tensors: dict[str, torch.Tensor], start: dict[str, torch.Tensor], number: int) -> None:
    """Every parameter times 1 +- 2^-23; sign = bit 0 of byte i of the stream ulp.NUMBER.NAME."""
    for name, value in tensors.items():
        lanes = philox_lanes(0, f"ulp.{number}.{name}", value.numel(), "u1")
        up = (lanes & 1).astype(bool).reshape(value.shape)
        factor = np.where(up, np.float32(1 + 2.0**-23), np.float32(1 - 2.0**-23))
        value.copy_(start[name] * torch.from_numpy(factor))


def make_band(model: nn.Module, case: synthetic.Case, recipe: Recipe) -> Band:
    """Trains from RUNS perturbed starts. `model` must have its start weights."""
    tensors = run.checkpoint_tensors(model)
    start = {name: value.clone() for name, value in tensors.items()}
    curves = []
    for number in range(RUNS):
        perturb(tensors, start, number)
        curves.append(train(model, case, recipe, None))
    for name, value in tensors.items():
        value.copy_(start[name])
    return band_of(np.array(curves))


def band_of(curves: np.ndarray) -> Band:
    """Statistics of curves [runs, steps]; each component's largest entry is positive."""
    mean = curves.mean(axis=0)
    _, sizes, directions = np.linalg.svd(curves - mean, full_matrices=False)
    components = directions[:COMPONENTS]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(COMPONENTS), largest])[:, None]
    variances = sizes[:COMPONENTS] ** 2 / (len(curves) - 1)
    return Band(len(curves), mean, curves.std(axis=0, ddof=1), components, variances)


def golden(suite: str, case: synthetic.Case, recipe: Recipe, band: Band | None) -> Content:
    loaded = run.load(case)
    run.freeze(loaded.model, indexer=True)
    log = run.Log(names_of(case))
    train(loaded.model, case, recipe, log)
    return log.content(run.attributes(suite, case, recipe, loaded, __name__), band)


def spread(case: synthetic.Case, recipe: Recipe) -> Band:
    """The band of a recipe, from a model of its own."""
    model = run.load(case).model
    run.freeze(model, indexer=True)
    return make_band(model, case, recipe)


# suite -> case -> recipe.
RECIPES = {
    "loss_descent": {"tiny-wide": Recipe(50, (DEFAULT,)), "small-train": Recipe(20, (DEFAULT,))},
    "loss_descent_memorised": {
        "tiny-wide": Recipe(50, (MEMORISED,), batches="memorised", clip=None)
    },
    "sft_frozen_indexer": {"tiny-wide": Recipe(20, (SFT,)), "small-train": Recipe(20, (SFT,))},
}
BANDED = ("loss_descent", "tiny-wide")


def make(suite: str, case: synthetic.Case) -> Content:
    recipe = RECIPES[suite][case.name]
    band = spread(case, recipe) if (suite, case.name) == BANDED else None
    return golden(suite, case, recipe, band)


def first_steps(suite: str, case: synthetic.Case, steps: int) -> Content:
    """The same run cut short, without a band."""
    return golden(suite, case, dataclasses.replace(RECIPES[suite][case.name], steps=steps), None)


JOBS = [
    run.Job(suite, case, functools.partial(make, suite))
    for suite, cases in RECIPES.items()
    for case in cases
]
