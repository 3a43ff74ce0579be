"""Compares two goldens of one case.

Decisions must be identical; values must agree as two float32 runs of the same model do.
"""

from __future__ import annotations

import h5file
import numpy as np
from agreement import limit
from dsv32_dump import sketch

# What has to be the same in both files. The others say who made them and on what.
SAME_ATTRIBUTES = (
    "format version case_name case kind dialect dtype mode rope_layout mask forced config taps "
    "weights seed"
).split()


def differences(golden: h5file.Content, fresh: h5file.Content) -> list[str]:
    """One line for each thing that differs; empty when the two agree."""
    out = [
        f"attribute {name}: {golden.attributes[name]!r} became {fresh.attributes.get(name)!r}"
        for name in SAME_ATTRIBUTES
        if golden.attributes[name] != fresh.attributes.get(name)
    ]
    if out:
        return out
    out += [
        f"inputs/{name}: other values"
        for name, value in golden.inputs.items()
        if not np.array_equal(value, fresh.inputs[name])
    ]
    valid = golden.inputs["attention_mask"].astype(bool)
    for name, value in golden.taps.items():
        out += _compare_tap(name, value, fresh.taps[name], valid)
    for name, value in golden.sketches.items():
        out += _compare_sketch(name, value, fresh.sketches[name], valid)
    return out


def _compare_tap(name: str, a: np.ndarray, b: np.ndarray, valid: np.ndarray) -> list[str]:
    if a.shape != b.shape:
        return [f"{name}: shape {a.shape} became {b.shape}"]
    if not name.startswith("grad.") and a.ndim > 0:  # rows of padded queries are never judged
        a, b = ((x.swapaxes(1, 2) if x.ndim == 4 and _is_map(name) else x)[valid] for x in (a, b))
    if h5file.is_decision(name):
        rows = int((a != b).any(axis=-1).sum())
        return [f"{name}: {rows} of {len(a)} rows chose otherwise"] if rows else []
    return _relative(name, a, b)


def _is_map(name: str) -> bool:
    return name.endswith(("attn.logits", "attn.probs"))


def _compare_sketch(name: str, a: sketch.Sketch, b: sketch.Sketch, valid: np.ndarray) -> list[str]:
    if a.shape != b.shape or not np.array_equal(a.row_index, b.row_index):
        return [f"{name}: other shape or rows"]
    rows = np.ones(1, dtype=bool) if name.startswith("grad.") else valid.reshape(-1)
    return (
        _relative(f"{name}/rows", a.rows, b.rows)
        + _relative(f"{name}/row_norms", a.row_norms[rows], b.row_norms[rows])
        + _relative(f"{name}/projections", a.projections[rows], b.projections[rows])
    )


def _relative(name: str, a: np.ndarray, b: np.ndarray) -> list[str]:
    if not np.array_equal(np.isneginf(a), np.isneginf(b)):
        return [f"{name}: -inf at other places"]
    a, b = (np.where(np.isneginf(x), 0, x).astype(np.float64) for x in (a, b))
    error, norm = np.linalg.norm(a - b), np.linalg.norm(a)
    if not error <= limit("golden.value") * norm:
        return [f"{name}: relative difference {error / norm if norm else error:.3g}"]
    return []
