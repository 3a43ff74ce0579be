"""Goldens of the cases of configs/cases.json: every tap and gradient of one pass of real code."""

from __future__ import annotations

import json
from pathlib import Path

import h5file
import numpy as np
import provenance
from dsv32_dump import Capture, Options, capture
from real import THREADS, GoldenError, open_model
from synthetic import Case, is_trainable, weight_specs

KEPT = ("mode", "dtype", "rope_layout", "mask", "forced", "attn_implementation")


def make(case: Case, transformers_path: Path | None = None) -> h5file.Content:
    """Checkpoint, from_pretrained, capture. Throws GoldenError on a missing tap or weight."""
    loaded = open_model(case, THREADS, transformers_path)
    run = capture(loaded.model, case.fields(), Options(backward=not case.chunks))
    taps = ordered_taps(case, run)
    return h5file.build(case, attributes(case, run.metadata, loaded.weights), taps)


def ordered_taps(case: Case, run: Capture) -> dict[str, np.ndarray]:
    """Forward taps, then gradients in back-propagation order; nothing absent, nothing left over."""
    forward = [name for name in run.taps if not name.startswith("grad.")]
    weights = [name for name in reversed(weight_specs(case.config)) if is_trainable(name)]
    gradients = [f"grad.{name}" for name in weights]
    names = forward + ([] if case.chunks else gradients)
    missing = run.missing + [name for name in names if name not in run.taps]
    extra = sorted(run.taps.keys() - set(names))
    if missing or extra:
        raise GoldenError(f"{case.name}: missing taps {missing}, unexpected taps {extra}")
    return {name: run.taps[name].detach().numpy() for name in names}


def attributes(case: Case, metadata: dict[str, str], weights: dict) -> dict[str, str | int]:
    """Root attributes of the file."""
    environment = json.loads(metadata["producer"])
    more = {key: environment[key] for key in ("experts_implementation", "attention_layouts")}
    return provenance.of_case(case, metadata, weights, KEPT) | {
        "format": h5file.FORMAT,
        "version": h5file.VERSION,
        "kind": case.golden,
        "producer": provenance.producer(case.name, __name__, environment, **more),
    }
