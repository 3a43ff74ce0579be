"""Writes and reads golden HDF5 files (docs/formats.md). The same input gives the same bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
from dsv32_dump import sketch
from synthetic import Case, make_batch

FORMAT = "dsv32-verify.golden"
VERSION = 1
MAX_DATASET_BYTES = 4 << 20
COMPACT_BYTES = 2048  # up to here a value lives in its object header
STORED_DTYPES = {"<f4", "<f8", "<i4", "<i8", "|u1"}


@dataclasses.dataclass
class Content:
    """A golden in memory. taps: full values; in a sketch topk, experts and scalars only."""

    attributes: dict[str, str | int | np.ndarray]
    inputs: dict[str, np.ndarray]
    taps: dict[str, np.ndarray]
    sketches: dict[str, sketch.Sketch]


def is_topk(tap: str) -> bool:
    return tap.endswith(".topk")


def is_decision(tap: str) -> bool:
    return is_topk(tap) or tap.endswith(".router.experts")


def build(case: Case, attributes: dict, taps: dict[str, np.ndarray]) -> Content:
    """What the file of this case holds, from complete taps."""
    attributes = attributes | {"taps": json.dumps(list(taps), separators=(",", ":"))}
    inputs = make_batch(case)
    unattended = {name: p == 0 for name, p in taps.items() if name.endswith("attn.probs")}
    hidden = ~visible_keys(inputs["attention_mask"])[:, None]
    taps = {name: _stored(name, value) for name, value in taps.items()}
    for name, off in unattended.items():
        logits = name.replace("attn.probs", "attn.logits")
        taps[logits] = np.where(off | hidden, np.float32(0), taps[logits])
        taps[name] = np.where(hidden, np.float32(0), taps[name])
    if case.golden == "full":
        return Content(attributes, inputs, taps, {})
    rows = sketch.chosen_rows(case.B, case.S, case.config["index_topk"])
    whole = {name: v for name, v in taps.items() if is_decision(name) or v.ndim == 0}
    sketches = {name: _sketch(case, name, taps, rows, inputs) for name in taps if name not in whole}
    return Content(attributes | {"rows": rows}, inputs, whole, sketches)


def _stored(name: str, value: np.ndarray) -> np.ndarray:
    if is_topk(name):
        return sketch.sort_topk(value)
    return np.asarray(value, dtype="<i4" if is_decision(name) else "<f4", order="C")


def visible_keys(mask: np.ndarray) -> np.ndarray:
    """[B, S, T] bool: key t is visible to query s when t <= s and mask[t] is 1."""
    S = mask.shape[1]
    return np.tri(S, dtype=bool)[None] & mask.astype(bool)[:, None, :]


def _sketch(
    case: Case,
    name: str,
    taps: dict[str, np.ndarray],
    rows: np.ndarray,
    inputs: dict[str, np.ndarray],
) -> sketch.Sketch:
    if not name.startswith("grad."):
        return sketch.sketch_tap(name, taps[name], rows)
    index = taps[name].shape[0] // 2
    if name == "grad.model.embed_tokens.weight":  # this token predicts a counted label
        index = int(inputs["input_ids"][0, case.S - 2])
    return sketch.sketch_gradient(name, taps[name], index)


def write(file: Path, content: Content) -> None:
    # The format of Debian 12's HDF5 1.10: older ones cost 2 KiB and more per dataset.
    with h5py.File(file, "w", libver=("v110", "v110"), track_order=False) as h5:
        write_attributes(h5, content.attributes)
        inputs = h5.create_group("inputs")
        for name, value in sorted(content.inputs.items()):
            write_dataset(inputs, name, value.astype("<i8"))
        taps = h5.create_group("taps")
        for name in sorted(content.taps.keys() | content.sketches.keys()):
            if name in content.sketches:
                _write_sketch(taps, name, content.sketches[name])
            elif is_topk(name) and content.attributes["kind"] == "sketch":
                write_bitset(taps, name, content.taps[name], content.inputs["labels"].shape[1])
            else:
                write_dataset(taps, name, content.taps[name])


def write_attributes(where: h5py.HLObject, attributes: dict[str, str | int | np.ndarray]) -> None:
    for name, value in sorted(attributes.items()):
        if isinstance(value, str):
            size = len(value.encode())
            where.attrs.create(name, value.encode(), dtype=h5py.string_dtype("utf-8", size))
        else:
            where.attrs.create(name, np.asarray(value, dtype="<i8"))


def write_dataset(group: h5py.Group, name: str, value: np.ndarray) -> h5py.Dataset:
    if value.dtype.str not in STORED_DTYPES or value.size == 0 or value.nbytes > MAX_DATASET_BYTES:
        raise ValueError(f"{name}: cannot store {value.dtype} {value.shape}")
    if value.ndim == 0 or value.nbytes <= COMPACT_BYTES:
        return _write_compact(group, name, value)
    filters = {"chunks": value.shape, "shuffle": True, "compression": "gzip", "compression_opts": 9}
    return group.create_dataset(name, data=value, track_times=False, **filters)


def _write_compact(group: h5py.Group, name: str, value: np.ndarray) -> h5py.Dataset:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.COMPACT)
    layout.set_obj_track_times(False)
    space = h5py.h5s.create_simple(value.shape) if value.ndim else h5py.h5s.create(h5py.h5s.SCALAR)
    dtype = h5py.h5t.py_create(value.dtype)
    dataset = h5py.h5d.create(group.id, name.encode(), dtype, space, layout)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(value))
    return h5py.Dataset(dataset)


def write_bitset(group: h5py.Group, name: str, topk: np.ndarray, keys: int) -> None:
    dataset = write_dataset(group, name, sketch.pack_topk(topk, keys))
    write_attributes(dataset, {"encoding": "bitset", "shape": np.array(topk.shape)})


def _write_sketch(parent: h5py.Group, name: str, value: sketch.Sketch) -> None:
    group = parent.create_group(name)
    write_attributes(group, {"shape": np.array(value.shape)})
    write_dataset(group, "rows", value.rows.astype("<f4"))
    write_dataset(group, "row_index", value.row_index.astype("<i8"))
    write_dataset(group, "row_norms", value.row_norms.astype("<f4"))
    write_dataset(group, "projections", value.projections.astype("<f4"))


def read(file: Path) -> Content:
    with h5py.File(file, "r") as h5:
        attributes = {name: read_attribute(value) for name, value in h5.attrs.items()}
        inputs = {name: data[()] for name, data in h5["inputs"].items()}
        taps, sketches = {}, {}
        for name in json.loads(attributes["taps"]):
            item = h5["taps"][name]
            if isinstance(item, h5py.Group):
                sketches[name] = _read_sketch(item)
            elif "encoding" in item.attrs:
                keys = inputs["labels"].shape[1]
                taps[name] = sketch.unpack_topk(item[()], int(item.attrs["shape"][2]), keys)
            else:
                taps[name] = np.asarray(item[()])
        return Content(attributes, inputs, taps, sketches)


def read_attribute(value: object) -> str | int | np.ndarray:
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, (str, np.ndarray)) else int(value)


def _read_sketch(group: h5py.Group) -> sketch.Sketch:
    parts = {key: group[key][()] for key in ("rows", "row_index", "row_norms", "projections")}
    return sketch.Sketch(tuple(int(n) for n in group.attrs["shape"]), **parts)
