"""Cases with their configs, weights and checkpoints: the numpy twin of src/model/.

The values of weights and batches are those of dsv32_trace, which runs where this folder is not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import dsv32_trace
import numpy as np
from dsv32_trace import (
    EXTRA_KEYS,
    canonical_json,
    case_values,
    plain_case,
    synthetic_values,
    weight_specs,
)

ROOT = Path(__file__).resolve().parents[2]
SHARD_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of configs/cases.json with its config.json, overrides applied."""

    name: str
    config_name: str
    config: dict
    overrides: dict
    seed: int
    B: int
    S: int
    pad: int
    bias_offset: float
    chunks: tuple[int, ...]
    mask_given: bool
    golden: str
    edits: tuple[dict, ...] = ()
    pad_side: str = "left"
    position_offset: int = 0
    config_style: int = 4
    weights: str = "synthetic"

    @property
    def sparse_attention(self) -> bool:
        return self.config.get("use_sparse_attention", True)

    def fields(self) -> dict:
        """The case as dsv32_dump takes it: an entry of cases.json."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["config"] = fields.pop("config_name")
        return fields | {"chunks": list(self.chunks), "edits": list(self.edits)}

    @property
    def json(self) -> str:
        return canonical_json(plain_case(self.fields()))


def load_config(name: str) -> dict:
    return json.loads((ROOT / "configs" / name / "config.json").read_text())


def load_cases() -> dict[str, Case]:
    listed = json.loads((ROOT / "configs" / "cases.json").read_text())["cases"]
    return {entry["name"]: _case(entry) for entry in listed}


def _case(entry: dict) -> Case:
    config = load_config(entry["config"])
    config.update(entry["overrides"])
    return Case(
        name=entry["name"],
        config_name=entry["config"],
        config=config,
        chunks=tuple(entry["chunks"]),
        **{
            key: entry[key]
            for key in ("overrides", "seed", "B", "S", "pad", "bias_offset", "mask_given", "golden")
        },
        **{key: entry[key] for key in EXTRA_KEYS if key in entry},
    )


def weight(seed: int, name: str, shape: tuple[int, ...], bias_offset: float = 0) -> np.ndarray:
    """One tensor of the unfused checkpoint, float32 (every value is exact in bfloat16)."""
    count = int(np.prod(shape))
    return synthetic_values(seed, name, shape[-1], count, bias_offset).reshape(shape)


def case_weight(case: Case, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor of the case's checkpoint, its edits done."""
    return case_values(case.fields(), name, shape, int(np.prod(shape))).reshape(shape)


def styled_config(case: Case) -> dict:
    """config.json as it is written: as released, or (config_style 5) as transformers 5 does it.

    The tensors beside it are float32: those of FP8 weights are dequantised.
    """
    config = {key: value for key, value in case.config.items() if key != "quantization_config"}
    if case.config_style == 4:
        return config
    scaling = config.pop("rope_scaling", None) or {"type": "default"}
    rope = {"rope_type": scaling["type"], "rope_theta": config.pop("rope_theta")}
    rope |= {key: value for key, value in scaling.items() if key != "type"}
    dense = config.pop("first_k_dense_replace")
    sparse = config["num_hidden_layers"] - dense
    return config | {
        "dtype": config.pop("torch_dtype", "float32"),
        "rope_parameters": rope,
        "mlp_layer_types": ["dense"] * dense + ["sparse"] * sparse,
    }


def is_trainable(name: str) -> bool:
    """Has a gradient under the LM loss: neither the indexer's nor a buffer."""
    return ".indexer." not in name and not name.endswith("e_score_correction_bias")


def model_digest(config: dict, seed: int, bias_offset: float = 0) -> str:
    """sha256 over (name, sha256 of the little-endian float32 bytes) in sorted name order."""
    total = hashlib.sha256()
    for name, shape in sorted(weight_specs(config).items()):
        total.update(name.encode())
        total.update(hashlib.sha256(weight(seed, name, shape, bias_offset)).digest())
    return total.hexdigest()


def make_batch(case: Case, index: int = 0) -> dict[str, np.ndarray]:
    """input_ids, attention_mask, position_ids, labels of batch `index`: [B, S] int64."""
    return dsv32_trace.make_batch(case.fields(), case.config["vocab_size"], index)


def write_checkpoint(case: Case, directory: Path) -> None:
    """The synthetic checkpoint in the released layout: config.json, sharded safetensors, index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(styled_config(case), indent=2) + "\n")
    shards = _shards(weight_specs(case.config))
    index: dict[str, str] = {}
    for number, specs in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(case, specs, directory / file)
        index |= dict.fromkeys(specs, file)
    size = sum(4 * int(np.prod(shape)) for shape in weight_specs(case.config).values())
    document = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
    text = json.dumps(document, indent=2) + "\n"
    (directory / "model.safetensors.index.json").write_text(text)


def _shards(specs: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, shape in specs.items():
        size = 4 * int(np.prod(shape))
        if shards[-1] and used + size > SHARD_BYTES:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += size
    return shards


def _write_shard(case: Case, specs: dict[str, tuple[int, ...]], file: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {n: case_weight(case, n, s) for n, s in specs.items()}
    save_file(tensors, file, metadata={"format": "pt"})
