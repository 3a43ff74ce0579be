"""Compares two training goldens of one suite and case.

Free training runs part for good after the first decision that differs, and it is only a question of
time until one does. So decisions and values are compared step by step for the first steps, and a
whole file only against itself (bytes) or against the band (the suites do that).
"""

from __future__ import annotations

import numpy as np
from agreement import limit

from training.h5 import Content

STEPS = 3  # compared
SAME_ATTRIBUTES = (
    "format version suite recipe case_name case kind dialect dtype mode mask forced config weights "
    "seed"
).split()


def differences(golden: Content, fresh: Content, steps: int = STEPS) -> list[str]:
    """One line for each thing that differs in the first steps; empty when the two agree."""
    out = [
        f"attribute {name}: {golden.attributes[name]!r} became {fresh.attributes.get(name)!r}"
        for name in SAME_ATTRIBUTES
        if golden.attributes[name] != fresh.attributes.get(name)
    ]
    if golden.parameters != fresh.parameters:
        out.append("other parameters")
    if golden.series.keys() != fresh.series.keys():
        out.append(f"series {sorted(golden.series)} became {sorted(fresh.series)}")
    if out:
        return out
    for step in range(min(steps, len(golden.decisions))):
        out += [f"step {step}: {line}" for line in compare_step(golden, fresh, step)]
    return out


def compare_step(a: Content, b: Content, step: int) -> list[str]:
    out = []
    for name, value in a.decisions[step].items():
        rows = int((value != b.decisions[step][name]).any(axis=-1).sum())
        out += [f"{name}: {rows} rows chose otherwise"] if rows else []
    for name, values in a.series.items():
        out += relative(name, values[step], b.series[name][step])
    for i, name in enumerate(a.parameters):
        scale = float(a.norms[step, i])
        change = np.abs(a.projections[step, i] - b.projections[step, i]).max()
        change = max(float(change), abs(scale - float(b.norms[step, i])))
        if not change <= limit("golden.parameter") * scale:
            out.append(f"{name}: moved by {change / scale:.3g} of its norm")
    return out


def relative(name: str, a: float, b: float) -> list[str]:
    if not abs(a - b) <= limit("golden.series") * abs(a):
        return [f"{name}: {a:.9g} became {b:.9g}"]
    return []
