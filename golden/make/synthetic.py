"""Cases with their configs, weights and checkpoints: the numpy twin of src/model/.

The values of weights and batches are those of dsv32_dump, which runs where this folder is not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from dsv32_dump import batch
from dsv32_dump.case import EXTRA_KEYS, canonical_json, plain_case
from dsv32_dump.synthetic import case_values, synthetic_values

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
    """config.json as it is written: as released, or (config_style 5) as transformers 5 does it."""
    if case.config_style == 4:
        return case.config
    config = dict(case.config)
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


def weight_specs(config: dict) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor, in paper order."""
    hidden = config["hidden_size"]
    specs = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        specs |= {prefix + name: shape for name, shape in _layer_specs(config, layer)}
    specs["model.norm.weight"] = (hidden,)
    specs["lm_head.weight"] = (config["vocab_size"], hidden)
    return specs


def _layer_specs(config: dict, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = config["hidden_size"]
    yield "input_layernorm.weight", (hidden,)
    yield from (("self_attn." + name, shape) for name, shape in _attention_specs(config))
    yield "post_attention_layernorm.weight", (hidden,)
    if layer < config["first_k_dense_replace"]:
        yield from _mlp_specs("mlp.", config["intermediate_size"], hidden)
        return
    inner = config["moe_intermediate_size"]
    yield "mlp.gate.weight", (config["n_routed_experts"], hidden)
    yield "mlp.gate.e_score_correction_bias", (config["n_routed_experts"],)
    for expert in range(config["n_routed_experts"]):
        yield from _mlp_specs(f"mlp.experts.{expert}.", inner, hidden)
    yield from _mlp_specs("mlp.shared_experts.", inner * config["n_shared_experts"], hidden)


def _attention_specs(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    q_lora, kv_lora = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope, v = (config[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    index_heads, index_dim = config["index_n_heads"], config["index_head_dim"]
    yield "q_a_proj.weight", (q_lora, hidden)
    yield "q_a_layernorm.weight", (q_lora,)
    yield "q_b_proj.weight", (heads * (nope + rope), q_lora)
    yield "kv_a_proj_with_mqa.weight", (kv_lora + rope, hidden)
    yield "kv_a_layernorm.weight", (kv_lora,)
    yield "kv_b_proj.weight", (heads * (nope + v), kv_lora)
    yield "o_proj.weight", (hidden, heads * v)
    yield "indexer.wq_b.weight", (index_heads * index_dim, q_lora)
    yield "indexer.wk.weight", (index_dim, hidden)
    yield "indexer.k_norm.weight", (index_dim,)
    yield "indexer.k_norm.bias", (index_dim,)
    yield "indexer.weights_proj.weight", (index_heads, hidden)


def _mlp_specs(prefix: str, inner: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield prefix + "gate_proj.weight", (inner, hidden)
    yield prefix + "up_proj.weight", (inner, hidden)
    yield prefix + "down_proj.weight", (hidden, inner)


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
    return batch.make_batch(case.fields(), case.config["vocab_size"], index)


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
