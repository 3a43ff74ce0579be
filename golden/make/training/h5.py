"""Writes and reads training goldens (docs/formats.md). Same input, same bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5file
import h5py
import numpy as np
from dsv32_dump import sketch

FORMAT = "dsv32-verify.training-golden"
VERSION = 1
PROJECTIONS = 16
COMPONENTS = 5  # leading directions of the band
TENSOR_DTYPES = {"<f4": "float32", "<i4": "int32"}


@dataclasses.dataclass
class Band:
    """Spread of series `loss` over clean runs from start weights that differ by one ulp."""

    runs: int
    mean: np.ndarray  # float64 [steps]
    deviation: np.ndarray  # float64 [steps], sample standard deviation
    components: np.ndarray  # float64 [5, steps], orthonormal
    variances: np.ndarray  # float64 [5], along the components


@dataclasses.dataclass
class Content:
    """A training golden in memory."""

    attributes: dict[str, str | int]
    series: dict[str, np.ndarray]  # float64 [steps]
    decisions: list[dict[str, np.ndarray]]  # per step; topk int32 ascending then -1, experts int32
    parameters: list[str]
    norms: np.ndarray  # float32 [steps, n] after each step
    projections: np.ndarray  # float32 [steps, n, 16]
    band: Band | None = None
    tensors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def write(file: Path, content: Content) -> None:
    with h5py.File(file, "w", libver=("v110", "v110"), track_order=False) as h5:
        h5file.write_attributes(h5, content.attributes | listing(content))
        series = h5.create_group("series")
        for name, value in sorted(content.series.items()):
            h5file.write_dataset(series, name, np.asarray(value, dtype="<f8"))
        decisions = h5.create_group("decisions")
        for step, taps in enumerate(content.decisions):
            _write_decisions(decisions.create_group(str(step)), taps)
        parameters = h5.create_group("parameters")
        h5file.write_dataset(parameters, "norms", content.norms.astype("<f4"))
        h5file.write_dataset(parameters, "projections", content.projections.astype("<f4"))
        if content.band is not None:
            _write_band(h5.create_group("band"), content.band)
        if content.tensors:
            tensors = h5.create_group("tensors")
            for name, value in sorted(content.tensors.items()):
                h5file.write_dataset(tensors, name, np.asarray(value, order="C"))


def listing(content: Content) -> dict[str, str]:
    """What the groups hold, in order: the reader checks the file against it."""
    names = {
        "series": sorted(content.series),
        "decisions": list(content.decisions[0]),
        "parameters": content.parameters,
        "tensors": [
            {"dtype": TENSOR_DTYPES[value.dtype.str], "name": name, "shape": list(value.shape)}
            for name, value in content.tensors.items()
        ],
    }
    return {key: json.dumps(value, separators=(",", ":")) for key, value in names.items()}


def _write_decisions(group: h5py.Group, taps: dict[str, np.ndarray]) -> None:
    for name, value in sorted(taps.items()):
        if h5file.is_topk(name):
            h5file.write_bitset(group, name, value, value.shape[1])
        else:
            h5file.write_dataset(group, name, value.astype("<i4"))


def _write_band(group: h5py.Group, band: Band) -> None:
    h5file.write_attributes(group, {"runs": band.runs})
    for name in ("mean", "deviation", "components", "variances"):
        h5file.write_dataset(group, name, np.asarray(getattr(band, name), dtype="<f8"))


def read(file: Path) -> Content:
    with h5py.File(file, "r") as h5:
        attributes = {name: h5file.read_attribute(value) for name, value in h5.attrs.items()}
        names = {
            key: json.loads(attributes.pop(key))
            for key in ("series", "decisions", "parameters", "tensors")
        }
        steps = range(len(h5["decisions"]))
        return Content(
            attributes,
            {name: h5["series"][name][()] for name in names["series"]},
            [_read_decisions(h5["decisions"][str(i)], names["decisions"]) for i in steps],
            names["parameters"],
            h5["parameters"]["norms"][()],
            h5["parameters"]["projections"][()],
            _read_band(h5["band"]) if "band" in h5 else None,
            {entry["name"]: h5["tensors"][entry["name"]][()] for entry in names["tensors"]},
        )


def _read_decisions(group: h5py.Group, names: list[str]) -> dict[str, np.ndarray]:
    out = {}
    for name in names:
        value = group[name][()]
        if h5file.is_topk(name):
            shape = group[name].attrs["shape"]
            value = sketch.unpack_topk(value, int(shape[2]), int(shape[1]))
        out[name] = value
    return out


def _read_band(group: h5py.Group) -> Band:
    parts = {name: group[name][()] for name in group}
    return Band(runs=int(group.attrs["runs"]), **parts)
