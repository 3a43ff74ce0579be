"""Real transformers with a case's synthetic weights, opened the way users open a checkpoint."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from dsv32_dump.load import Loading, import_transformers, load_model
from dsv32_dump.weights import Checkpoint, compare_weights
from dsv32_trace import canonical_json
from synthetic import Case, weight_specs, write_checkpoint
from torch import nn

THREADS = 2  # sums depend on it, so it is part of the golden


class GoldenError(Exception):
    """A run that must not become a golden."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model as from_pretrained gave it, and what its weights were compared with."""

    model: nn.Module
    weights: dict[str, Any]  # as compare_weights says it


def open_model(case: Case, threads: int, transformers_path: Path | None = None) -> Loaded:
    """The case's checkpoint in real code: float32, eager attention, deterministic.

    Throws GoldenError when a weight was not loaded as it is in the checkpoint.
    """
    transformers = import_transformers(transformers_path)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(case, Path(folder))
        model = load_model(transformers, Loading(Path(folder), attn="eager"))
        weights = compare_weights(model, Checkpoint(Path(folder)))
    check_loaded(case, weights)
    return Loaded(model, weights)


def check_loaded(case: Case, weights: dict[str, Any]) -> None:
    """Throws GoldenError unless every weight was loaded, and nothing else."""
    kinds = ("different", "missing", "unexpected")
    wrong = {kind: weights[kind] for kind in kinds if weights[kind]}
    if wrong or weights["identical"] != len(weight_specs(case.config)):
        raise GoldenError(f"{case.name}: weights: {canonical_json(wrong or weights)}")
