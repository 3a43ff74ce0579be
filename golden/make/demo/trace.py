"""A run of the demo as a trace file: what the judge reads, and how the goldens are committed."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import dsv32_dump.sketch as sketch
import numpy as np
import torch
from dsv32_dump.trace import trace_metadata, write_trace
from dsv32_trace import canonical_json, case_metadata, forward_taps, open_case, plain_case
from provenance import sources
from real import GoldenError
from synthetic import Case, make_batch, weight_specs
from torch import Tensor

from demo.model import SHA256, Mode

QUANTIZATION = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


def case_text(case: Case, mode: Mode, chunks: tuple[int, ...]) -> str:
    """The case as the trace names it: with its chunks, and in fp8 with what config.json says."""
    fields = case.fields() | {"chunks": list(chunks)}
    if mode.dtype != "fp8":
        return case_metadata(fields)
    scale = {"scale_fmt": "ue8m0"} if mode.ue8m0 else {}
    fields["overrides"] = case.overrides | {"quantization_config": QUANTIZATION | scale}
    return canonical_json(plain_case(fields) | {"weights": "synthetic-fp8"})


def metadata(
    case: Case, mode: Mode, chunks: tuple[int, ...], checks: dict[str, Any]
) -> dict[str, str]:
    """checks: what checks.py found, so that a reader knows why this may be called golden."""
    loaded = {"identical": len(weight_specs(case.config)), "different": [], "missing": [],
              "unexpected": []}  # fmt: skip
    producer = {
        "tool": "golden/make demo",
        "model_sha256": SHA256,
        "kernels": "plain torch in place of act_quant, fp8_gemm, fp8_index, hadamard_transform",
        "quantised": mode.quantised,
        "scale_fmt": mode.scale_fmt or "none",
        "checks": checks,
        "sources": sources("demo.command"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": "cpu",
    }
    source = "synthetic-fp8" if mode.dtype == "fp8" else "synthetic"
    texts = trace_metadata(
        case.fields(),
        mode="forward",
        dtype=mode.dtype,
        mask="given" if case.mask_given else "none",
        weights=f"{source}:{case.seed}",
        weights_loaded=canonical_json(loaded),
        attn_implementation="absorbed after the first chunk" if chunks else "expanded",
        derived_taps=canonical_json(["loss.lm"]),
        producer=canonical_json(producer),
    )
    return texts | {"case": case_text(case, mode, chunks)}


def ordered(case: Case, taps: dict[str, Tensor]) -> dict[str, Tensor]:
    """The taps in execution order. Throws GoldenError when one is missing or unknown."""
    names = forward_taps(open_case(case.fields()))
    missing, extra = set(names) - taps.keys(), taps.keys() - set(names)
    if missing or extra:
        raise GoldenError(f"{case.name}: missing {sorted(missing)}, unexpected {sorted(extra)}")
    return {name: taps[name] for name in names}


def sketched(case: Case, taps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Decisions whole, of others rows, norms and projections (docs/formats.md 9)."""
    wide = {n: (v.float() if v.is_floating_point() else v).numpy() for n, v in taps.items()}
    parts = sketch.sketched_taps(wide, make_batch(case), case.config["index_topk"])
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in parts.items()}


def write(
    out: Path, case: Case, taps: dict[str, Tensor], texts: dict[str, str], sketch_it: bool = False
) -> None:
    """The file, whole or not at all."""
    taps = ordered(case, taps)
    if sketch_it:
        taps, texts = sketched(case, taps), texts | {"sketch": "1"}
    write_trace(out, taps, texts)
    _order(out)


def _order(file: Path) -> None:
    """Puts the metadata in order: the library writes it in another one each time."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
