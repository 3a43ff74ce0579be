"""Writes trace files of real transformers: one line of JSON on stdin each, one line back.

The line: case (an entry of configs/cases.json with its seed), file, dtype, attention, experts, and
order, a key of sums.ORDERS or empty. Run in the environment of the release. The answer is `done`,
or `failed` and why.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch
from dsv32_dump import Options, dump
from dsv32_dump.load import import_transformers
from synthetic import Case, load_cases

from calibration.live import model_of, reseed
from calibration.serve import serve
from calibration.sums import SumOrder

models: dict[tuple[str, ...], torch.nn.Module] = {}  # the last one only


def case_of(name: str, seed: int) -> Case:
    return dataclasses.replace(load_cases()[name], seed=seed)


def model_for(case: Case, job: dict[str, Any]) -> torch.nn.Module:
    key = (case.name, job["dtype"], job["attention"])
    if key not in models:
        models.clear()
        models[key] = model_of(case, job["dtype"], job["attention"])
    reseed(models[key], case)
    return models[key]


def write(job: dict[str, Any]) -> None:
    case = case_of(job["case"], job["seed"])
    model = model_for(case, job)
    options = Options(
        backward=True,
        attn_implementation=job["attention"],
        experts_implementation=job["experts"],
    )
    order = SumOrder(job["order"]) if job["order"] else contextlib.nullcontext()
    with order:
        run = dump(model, case.fields(), job["file"], options)
    if run.failure:
        raise RuntimeError(str(run.failure))
    if job["order"] and order.seen == 0:
        raise RuntimeError("no sum was replaced")


if __name__ == "__main__":
    torch.set_num_threads(1)
    import_transformers()
    serve(write)
