"""A live transformers model with the synthetic weights of a case."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from dsv32_dump.load import Loading, import_transformers, load_model
from dsv32_dump.weights import loaded_tensors
from synthetic import Case, case_weight, weight_specs, write_checkpoint


def model_of(case: Case, dtype: str, attention: str) -> torch.nn.Module:
    """The model as from_pretrained loads it from the case's checkpoint."""
    transformers = import_transformers()
    transformers.logging.set_verbosity_error()
    if hasattr(transformers.logging, "disable_progress_bar"):
        transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(case, Path(folder))
        return load_model(transformers, Loading(Path(folder), attn=attention, dtype=dtype))


def reseed(model: torch.nn.Module, case: Case) -> None:
    """The weights of the case, in place: what a live model of its sizes needs for another seed."""
    own = loaded_tensors(model, case.config["hidden_size"])
    with torch.no_grad():
        for name, shape in weight_specs(case.config).items():
            own[name].copy_(torch.from_numpy(case_weight(case, name, shape)))
