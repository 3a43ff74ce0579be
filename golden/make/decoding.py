"""Goldens of greedy decoding: what real transformers' `generate` emits after a case's prompts.

generate.CASE for each case of configs/cases.json that says which token ends a row.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5file
import h5py
import numpy as np
import provenance
from agreement import limit
from dsv32_dump import Options, generate, sketch
from dsv32_dump.generate import decoding_of_case
from dsv32_trace import listed_cases
from real import THREADS, GoldenError, open_model
from synthetic import Case

FORMAT = "dsv32-verify.generate-golden"
VERSION = 1
STOP = 9  # the step of row 0 at which the golden emits eos
KEPT = ("mode", "decoding", "dtype", "mask", "forced", "attn_implementation")


@dataclasses.dataclass
class Content:
    """A golden in memory."""

    attributes: dict[str, str | int]
    tokens: np.ndarray  # int64 [B,N]
    logits: np.ndarray  # float32 [B,N,vocab]
    decisions: dict[str, np.ndarray]  # int32, over the whole history


def names() -> list[str]:
    """Cases that have such a golden."""
    return [name for name, case in listed_cases().items() if "decoding" in case]


def make(case: Case, transformers_path: Path | None = None) -> Content:
    """Checkpoint, from_pretrained, generate. Throws GoldenError where row 0 ends elsewhere."""
    loaded = open_model(case, THREADS, transformers_path)
    decoding = decoding_of_case({"name": case.name}, None, None)
    run = generate(loaded.model, case.fields(), Options(decoding=decoding))
    taps = {name: value.numpy() for name, value in run.taps.items()}
    tokens, logits = taps.pop("gen.tokens"), taps.pop("gen.logits")
    check_stop(case.name, tokens, decoding.eos)
    if run.missing:
        raise GoldenError(f"{case.name}: missing decisions {run.missing}")
    decisions = {
        name: sketch.sort_topk(value) if h5file.is_topk(name) else value
        for name, value in taps.items()
    }
    return Content(attributes(case, run.metadata, loaded.weights), tokens, logits, decisions)


def check_stop(name: str, tokens: np.ndarray, eos: int) -> None:
    """Row 0 ends at step 9 and not before; another row goes on, so that both are seen."""
    first = tokens[0, : STOP + 1]
    if first[STOP] != eos or (first[:STOP] == eos).any():
        want = f"eos {first[STOP]} in configs/cases.json, emitted at step {STOP} of row 0"
        raise GoldenError(f"{name}: decoding: expected {want}, got {eos}; tokens {first.tolist()}")
    if not (tokens[1:, -1] != eos).any():
        raise GoldenError(f"{name}: decoding: expected a row that goes on to the end, got none")


def attributes(case: Case, metadata: dict[str, str], weights: dict) -> dict[str, str | int]:
    """Root attributes of the file."""
    environment = json.loads(metadata["producer"])
    more = {key: environment[key] for key in ("cache", "experts_implementation")}
    return provenance.of_case(case, metadata, weights, KEPT) | {
        "format": FORMAT,
        "version": VERSION,
        "kind": "generate",
        "producer": provenance.producer(f"generate.{case.name}", __name__, environment, **more),
    }


def write(file: Path, content: Content) -> None:
    with h5py.File(file, "w", libver=("v110", "v110"), track_order=False) as h5:
        h5file.write_attributes(h5, content.attributes)
        group = h5.create_group("decisions")
        for name, value in sorted(content.decisions.items()):
            if h5file.is_topk(name):
                h5file.write_bitset(group, name, value, value.shape[1])
            else:
                h5file.write_dataset(group, name, value.astype("<i4"))
        h5file.write_dataset(h5, "gen.logits", content.logits.astype("<f4"))
        h5file.write_dataset(h5, "gen.tokens", content.tokens.astype("<i8"))


def read(file: Path) -> Content:
    with h5py.File(file, "r") as h5:
        decisions = {}
        for name, dataset in h5["decisions"].items():
            value = dataset[()]
            if h5file.is_topk(name):
                shape = dataset.attrs["shape"]
                value = sketch.unpack_topk(value, int(shape[2]), int(shape[1]))
            decisions[name] = value
        return Content(
            {name: h5file.read_attribute(value) for name, value in h5.attrs.items()},
            h5["gen.tokens"][()],
            h5["gen.logits"][()],
            decisions,
        )


def differences(old: Content, new: Content) -> list[str]:
    """What a new run emits or decides otherwise, or gives other logits for."""
    found = []
    if old.tokens.shape != new.tokens.shape or (old.tokens != new.tokens).any():
        found.append(f"gen.tokens: {old.tokens.tolist()} became {new.tokens.tolist()}")
    elif (error := relative(new.logits, old.logits)) > limit("golden.value"):
        found.append(f"gen.logits: relative {error:.1e}")
    for name in sorted(old.decisions.keys() | new.decisions.keys()):
        a, b = old.decisions.get(name), new.decisions.get(name)
        if a is None or b is None or a.shape != b.shape or (a != b).any():
            found.append(f"{name}: other decisions")
    return found


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
