"""Runs one implementation of DeepSeek-V3.2 in its own Python environment and writes its trace file.

One self-contained file: torch >= 2.4, numpy, safetensors and the transformers under test, nothing
else.

    python golden/dump.py --checkpoint ckpt/ --case small --out fork.safetensors [--transformers
    PATH] [--mode backward | kl-warmup | kl-sparse | train --suite loss_descent]

or, on a live model:

    from dump import capture, dump
    run = capture(model, case, backward=True)       # run.taps, run.missing, run.metadata
    dump(model, case, "fork.safetensors")           # the same, as a trace file

Modules are found by structure and checkpoint name, never by class name. Index scores, softmax
inputs and routing are read
where they pass through torch (a TorchFunctionMode that is active during the forward only). Shapes,
names and layout of
the taps: FORMATS section 4. Nothing is computed on the model's behalf but what `derived_taps` in
the metadata lists.

Exit codes: 0 written · 1 the implementation crashed (the file has the account of it in `failure`,
and the taps seen until
then) · 2 usage · 3 a bug of this file · 4 wrong input (checkpoint, case, another transformers than
asked for) ·
6 environment (output not writable, a package missing) · 130 interrupted · 143 terminated.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import inspect
import json
import math
import os
import platform
import re
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CASE_KEYS = ("config", "overrides", "seed", "B", "S", "pad", "bias_offset", "chunks")
CASE_FILE = "dsv32_case.json"
CASE_LIST = Path(__file__).resolve().parents[3] / "configs" / "cases.json"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
# A score that an additive mask of any dtype (float16 has the smallest, -65504) pushed out of reach.
MASKED_SCORE = -3e4
SPOT_CHECK = 64  # leading values of each tensor that tell a synthetic checkpoint from another

LAYER_TAPS = (
    "attn_norm q_latent kv_latent q_nope q_rope k_rope ix.q ix.k ix.weights ix.scores topk "
    "attn.logits attn.probs attn.ctx attn.out ffn_norm router.logits router.experts "
    "router.weights moe.routed moe.shared mlp.out hidden"
).split()
MOE_TAPS = ("router.logits", "router.experts", "router.weights", "moe.routed", "moe.shared")


TRAINING_OUTPUTS = ("indexer_scores", "indexer_kl_target", "indexer_targets")
KL_FIELDS = ("indexer_kl_loss", "indexer_loss", "kl_loss")
KL_STAGES = ("warmup", "sparse")  # SPEC Eq. 3 and Eq. 4
KL_INPUTS = ("attn.probs", "topk")  # kept in a KL run, asked for or not
KL_TAPS = ("kl.target", "kl.student", "kl.rows", "kl.dscores", "loss.kl")


class DumpError(Exception):
    """Wrong input or environment: `where: what: expected X, got Y; hint: ...` and an exit code."""

    def __init__(
        self, code: int, where: str, what: str, expected: str = "", got: str = "", hint: str = ""
    ) -> None:
        text = f"{where}: {what}"
        if expected or got:
            text += f": expected {expected}, got {got}"
        super().__init__(text + (f"; hint: {hint}" if hint else ""))
        self.code = code


class ModelCrash(Exception):
    """The implementation itself raised; `__cause__` is what it raised.

    `capture` holds the account (`failure`) and the taps seen until then.
    """

    def __init__(self, capture: Capture) -> None:
        super().__init__(capture.failure["message"] if capture.failure else "")
        self.capture = capture


@dataclasses.dataclass
class Capture:
    """What one run gave, in the names, shapes and layout of FORMATS section 4."""

    taps: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    reasons: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # missing tap -> what was seen instead
    derived: list[str] = dataclasses.field(
        default_factory=list
    )  # taps computed here from what the model passed on
    failure: dict[str, Any] | None = None


# --- case and batch -------------------------------------------------------------------------------


def canonical_json(value: Any) -> str:
    """RFC 8785: sorted keys, no spaces, numbers as ECMAScript prints them."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda k: k.encode("utf-16-be"))
        return (
            "{" + ",".join(canonical_json(k) + ":" + canonical_json(value[k]) for k in keys) + "}"
        )
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(canonical_json, value)) + "]"
    if isinstance(value, float):
        return _ecmascript_number(value)
    return json.dumps(value, ensure_ascii=False)


def _ecmascript_number(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError(f"not a JSON number: {value}")
    if value == 0:
        return "0"
    sign, text = ("-" if value < 0 else ""), repr(abs(value))
    mantissa, _, exponent = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    point = len(whole) + int(
        exponent or 0
    )  # decimal point, counted from the first digit of `digits`
    digits = whole + ("" if fraction == "0" else fraction)
    stripped = digits.lstrip("0")
    point -= len(digits) - len(stripped)
    digits = stripped.rstrip("0")
    if len(digits) <= point <= 21:
        return sign + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return sign + digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return sign + "0." + "0" * -point + digits
    power = f"e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return sign + digits[0] + ("." + digits[1:] if len(digits) > 1 else "") + power


def check_case(case: dict[str, Any], where: str) -> dict[str, Any]:
    """The case with its defaults filled in. Throws DumpError on a missing key, a wrong type or an
    impossible value."""
    case = {"overrides": {}, "seed": 1, "pad": 0, "bias_offset": 0, "chunks": [], **case}
    if "mask" in case:
        case["mask_given"] = case.pop("mask") != "none"
    for key in CASE_KEYS:
        if key not in case:
            raise DumpError(
                4, where, f"case.{key}", "a value", "a missing key", "keys: " + " ".join(CASE_KEYS)
            )
    for key, least in (("seed", 0), ("B", 1), ("S", 1), ("pad", 0)):
        if not isinstance(case[key], int) or isinstance(case[key], bool) or case[key] < least:
            raise DumpError(4, where, f"case.{key}", f"an integer >= {least}", repr(case[key]))
    if case["pad"] >= case["S"]:
        raise DumpError(4, where, "case.pad", f"less than S = {case['S']}", str(case["pad"]))
    chunks = case["chunks"]
    if not isinstance(chunks, (list, tuple)) or any(
        not isinstance(c, int) or c < 1 for c in chunks
    ):
        raise DumpError(4, where, "case.chunks", "a list of positive lengths", repr(chunks))
    if chunks and sum(chunks) != case["S"]:
        raise DumpError(
            4,
            where,
            "case.chunks",
            f"lengths that sum to S = {case['S']}",
            f"a sum of {sum(chunks)}",
        )
    return case


def case_metadata(case: dict[str, Any]) -> str:
    """The name of a listed case, else the whole case as canonical JSON."""
    plain = {key: case[key] for key in (*CASE_KEYS, "batch") if key in case}
    name = case.get("name")
    listed = listed_cases().get(name) if isinstance(name, str) else None
    if listed and "batch" not in case and all(listed[k] == case[k] for k in CASE_KEYS):
        return str(name)
    return canonical_json(plain)


@functools.lru_cache(maxsize=1)
def listed_cases() -> dict[str, dict[str, Any]]:
    """configs/cases.json of the repository, when this file stands in it."""
    if not CASE_LIST.is_file():
        return {}
    return {entry["name"]: entry for entry in json.loads(CASE_LIST.read_text())["cases"]}


def find_case(text: str | None, checkpoint: Path) -> dict[str, Any]:
    """`text` is a name, JSON, or None for the case that the checkpoint was made for."""
    file = checkpoint / CASE_FILE
    own = (
        check_case(_json_object(file.read_text(), str(file)), str(file)) if file.is_file() else None
    )
    if text is None:
        if own is None:
            raise DumpError(
                2,
                "--case",
                "no case given",
                f"a name or JSON, or {CASE_FILE} in the checkpoint",
                "neither",
            )
        return _named(own)
    if text.lstrip().startswith("{"):
        case = _named(check_case(_json_object(text, "--case"), "--case"))
    elif text in listed_cases():
        case = check_case(dict(listed_cases()[text]), text)
    elif own is not None and own.get("name") == text:
        case = own
    else:
        near = (
            ", ".join(listed_cases())
            or "none: configs/cases.json is not beside this file; pass the case as JSON"
        )
        raise DumpError(2, "--case", "unknown case", f"one of {near}", repr(text))
    for key in ("config", "overrides", "seed", "bias_offset") if own else ():
        if own[key] != case[key]:
            got = f"a checkpoint made for {canonical_json(own[key])}"
            raise DumpError(
                4,
                str(file),
                f"case.{key}",
                canonical_json(case[key]),
                got,
                "make the checkpoint of this case",
            )
    return case


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DumpError(4, where, "case", "JSON", str(error)) from error
    if not isinstance(value, dict):
        raise DumpError(4, where, "case", "a JSON object", type(value).__name__)
    return value


def _named(case: dict[str, Any]) -> dict[str, Any]:
    """Gives a case the name (and mask) of the listed case with the same numbers."""
    for name, listed in listed_cases().items():
        if all(listed[key] == case[key] for key in CASE_KEYS):
            if case.get("mask_given", listed["mask_given"]) == listed["mask_given"]:
                return {**case, "name": name, "mask_given": listed["mask_given"]}
    return case


def fnv1a64(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def philox_lanes(seed: int, name: str, count: int, lane: str) -> np.ndarray:
    """`count` lanes (numpy dtype `lane`) of the stream `name`. FORMATS section 1."""
    per_word = 8 // np.dtype(lane).itemsize
    stream = np.random.Philox(key=np.array([seed, fnv1a64(name)], dtype=np.uint64))
    return stream.random_raw(-(-count // per_word)).astype("<u8", copy=False).view(lane)[:count]


def make_batch(case: dict[str, Any], vocab: int, index: int = 0) -> dict[str, np.ndarray]:
    """input_ids, attention_mask, position_ids, labels: [B,S] int64. FORMATS section 2."""
    B, S = case["B"], case["S"]
    lanes = philox_lanes(case["seed"], f"batch.{index}.input_ids", B * S, "<u4").astype(np.uint64)
    ids = ((lanes * np.uint64(vocab)) >> np.uint64(32)).astype(np.int64).reshape(B, S)
    mask = np.ones((B, S), dtype=np.int64)
    mask[B - 1, : case["pad"]] = 0
    return complete_batch({"input_ids": ids, "attention_mask": mask})


def complete_batch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds position_ids, and attention_mask and labels where they are absent."""
    ids = np.asarray(batch["input_ids"], dtype=np.int64)
    S = ids.shape[1]
    mask = np.asarray(batch.get("attention_mask", np.ones_like(ids)), dtype=np.int64)
    counted = np.cumsum(mask, axis=1)
    after_padding = (counted == 1) & (mask == 1) & (np.arange(S) > 0)
    labels = np.where((mask == 0) | after_padding | (np.arange(S) < S // 4), -100, ids)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": np.asarray(
            batch.get("position_ids", np.maximum(counted - 1, 0)), dtype=np.int64
        ),
        "labels": np.asarray(batch.get("labels", labels), dtype=np.int64),
    }


def read_batch(path: Path, case: dict[str, Any], vocab: int) -> dict[str, np.ndarray]:
    """Own data: safetensors with input_ids, optional attention_mask and labels. FORMATS 4."""
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            batch = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, safetensors.SafetensorError) as error:
        raise DumpError(4, str(path), "batch", "a safetensors file", str(error)) from error
    shape = (case["B"], case["S"])
    unknown = set(batch) - {"input_ids", "attention_mask", "labels"}
    if unknown or "input_ids" not in batch:
        raise DumpError(
            4,
            str(path),
            "names",
            "input_ids, attention_mask, labels",
            ", ".join(sorted(batch)) or "none",
        )
    for name, value in batch.items():
        if value.shape != shape or value.dtype != np.int64:
            raise DumpError(
                4, str(path), name, f"{list(shape)} int64", f"{list(value.shape)} {value.dtype}"
            )
    if ((batch["input_ids"] < 0) | (batch["input_ids"] >= vocab)).any():
        raise DumpError(4, str(path), "input_ids", f"tokens in [0, {vocab})", "a token outside")
    if not np.isin(batch.get("attention_mask", np.ones(1)), (0, 1)).all():
        raise DumpError(4, str(path), "attention_mask", "0 and 1 only", "another value")
    return complete_batch(batch)


# --- the parts of a model -------------------------------------------------------------------------


def _key(name: str) -> Any:
    """A size whose name in config.json is `name`."""
    return dataclasses.field(metadata={"key": name})


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Dimensions of the model, from its config."""

    vocab: int = _key("vocab_size")
    hidden: int = _key("hidden_size")
    layers: int = _key("num_hidden_layers")
    heads: int = _key("num_attention_heads")
    q_lora: int = _key("q_lora_rank")
    kv_lora: int = _key("kv_lora_rank")
    nope: int = _key("qk_nope_head_dim")
    rope: int = _key("qk_rope_head_dim")
    v: int = _key("v_head_dim")
    ix_heads: int = _key("index_n_heads")
    ix_dim: int = _key("index_head_dim")
    topk: int = _key("index_topk")
    experts: int = _key("n_routed_experts")
    experts_per_token: int = _key("num_experts_per_tok")

    @classmethod
    def of(cls, config: Any, topk: int | None = None) -> Sizes:
        config = getattr(config, "text_config", None) or config
        names = {field.name: field.metadata["key"] for field in dataclasses.fields(cls)}
        values = {field: getattr(config, name, None) for field, name in names.items()}
        if topk is not None:
            values["topk"] = topk
        absent = [names[field] for field, value in values.items() if value is None]
        if absent:
            raise DumpError(
                4,
                type(config).__name__,
                "config",
                "the fields of DeepSeek-V3.2",
                "no " + ", ".join(absent),
            )
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Part:
    """A module with a known place in the paper."""

    role: str
    layer: int = -1


def has_children(module: nn.Module, *names: str) -> bool:
    children = dict(module.named_children())
    return all(name in children for name in names)


def find_parts(model: nn.Module) -> dict[str, Part]:
    """Module name -> part, by structure and checkpoint name. An unknown module is not there."""
    modules = dict(model.named_modules())
    parts: dict[str, Part] = {}
    attention = [n for n, m in modules.items() if has_children(m, "o_proj") and _has_latents(m)]
    attention = attention[: getattr(model.config, "num_hidden_layers", None)]  # beyond: MTP
    for layer, name in enumerate(attention):
        _add_attention(parts, modules, name, layer)
        parent = name.rpartition(".")[0]
        parts[parent] = Part("layer", layer)
        _add_block(parts, modules, parent, name, layer)
    _add_ends(parts, model, modules, attention)
    return parts


def _has_latents(module: nn.Module) -> bool:
    children = [name for name, _ in module.named_children()]
    return "kv_a_layernorm" in children or any(name.startswith("kv_a_proj") for name in children)


def _add_attention(
    parts: dict[str, Part], modules: dict[str, nn.Module], name: str, layer: int
) -> None:
    parts[name] = Part("attention", layer)
    roles = {
        "q_a_layernorm": "q_norm",
        "q_b_proj": "q_b",
        "kv_a_layernorm": "kv_norm",
        "o_proj": "o_proj",
    }
    for child, module in modules[name].named_children():
        if child in roles:
            parts[f"{name}.{child}"] = Part(roles[child], layer)
        elif child.startswith("kv_a_proj"):
            parts[f"{name}.{child}"] = Part("kv_a", layer)
        elif child == "indexer" or has_children(module, "wq_b", "wk"):
            parts[f"{name}.{child}"] = Part("indexer", layer)
            for role, inner in _indexer_children(module).items():
                parts[f"{name}.{child}.{inner}"] = Part(role, layer)


def _indexer_children(module: nn.Module) -> dict[str, str]:
    """Role -> name of child: the checkpoint's names, else the norm and the head weights by their
    shape and place."""
    children = dict(module.named_children())
    found = {role: role for role in ("wq_b", "k_norm", "weights_proj") if role in children}
    linear = [n for n, m in children.items() if isinstance(m, nn.Linear) and n != "wk"]
    others = [n for n in children if n not in linear and n != "wk"]
    norms = [n for n in others if getattr(children[n], "weight", None) is not None]
    if "k_norm" not in found and len(norms) == 1:
        found["k_norm"] = norms[0]
    if not {"wq_b", "wk", "weights_proj"} & set(children) and len(linear) == 3:
        by_rows = sorted(linear, key=lambda n: children[n].out_features)
        widest = by_rows[-1]  # all heads at once
        head = [n for n in by_rows[:2] if "weight" in n]
        found |= {"wq_b": widest} | ({"weights_proj": head[0]} if head else {})
    return found


def _add_block(
    parts: dict[str, Part], modules: dict[str, nn.Module], parent: str, attention: str, layer: int
) -> None:
    """The norms and the MLP beside an attention module."""
    norms = []
    for child, module in modules[parent].named_children():
        name = f"{parent}.{child}" if parent else child
        weight = getattr(module, "weight", None)
        if name == attention:
            continue
        if isinstance(weight, Tensor) and weight.dim() == 1:
            norms.append(name)
        elif has_children(module, "experts") or has_children(module, "gate_proj"):
            parts[name] = Part("mlp", layer)
            _add_moe(parts, module, name, layer)
    for name in norms:
        leaf = name.rpartition(".")[2]
        first = leaf == "input_layernorm" or (
            leaf != "post_attention_layernorm" and name == norms[0]
        )
        parts[name] = Part("attn_norm" if first else "ffn_norm", layer)


def _add_moe(parts: dict[str, Part], module: nn.Module, name: str, layer: int) -> None:
    if not has_children(module, "experts"):
        return
    parts[name] = Part("moe", layer)
    for child, part in module.named_children():
        if child == "gate" or hasattr(part, "e_score_correction_bias"):
            parts[f"{name}.{child}"] = Part("gate", layer)
        elif child == "experts":
            parts[f"{name}.{child}"] = Part("experts", layer)
        elif child.startswith("shared_expert"):
            parts[f"{name}.{child}"] = Part("shared", layer)


def _add_ends(
    parts: dict[str, Part], model: nn.Module, modules: dict[str, nn.Module], attention: list[str]
) -> None:
    names = {id(module): name for name, module in modules.items()}
    embed = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    embed_name = names.get(id(embed)) or next(
        (n for n in modules if n.endswith("embed_tokens")), None
    )
    if embed_name:
        parts[embed_name] = Part("embed")
    if not attention:
        return
    trunk = attention[0].split(".layers.")[0] if ".layers." in attention[0] else ""
    norm = f"{trunk}.norm" if trunk else "norm"
    if norm in modules:
        parts[norm] = Part("final_norm")


# --- checkpoint names -----------------------------------------------------------------------------

WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")
FUSED = re.compile(r"^(.*\.experts)\.(gate_up_proj|gate_proj|up_proj|down_proj)(?:\.weight)?$")


def checkpoint_views(
    name: str, value: Tensor, hidden: int, transposed: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """A parameter (or its gradient) as the unfused tensors of the checkpoint."""
    name = WRAPPERS.sub("", name)
    if re.match(r"(layers\.\d+|embed_tokens|norm)\.", name):
        name = "model." + name  # the bare model without its head
    fused = FUSED.match(name) if value.dim() == 3 else None
    if not fused:
        yield name, value
        return
    prefix, kind = fused.groups()
    inward = kind != "down_proj"  # rows of the checkpoint tensor are inner channels
    want = value.shape[2] if inward else value.shape[1]
    if transposed or (want != hidden and hidden in value.shape[1:]):
        value = value.transpose(1, 2)
    for expert in range(value.shape[0]):
        if kind == "gate_up_proj":
            gate, up = value[expert].chunk(2, dim=0)
            yield f"{prefix}.{expert}.gate_proj.weight", gate
            yield f"{prefix}.{expert}.up_proj.weight", up
        else:
            yield f"{prefix}.{expert}.{kind}.weight", value[expert]


def is_transposed(model: nn.Module, name: str) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    return bool(getattr(owner, "is_transposed", False))


def loaded_tensors(model: nn.Module, hidden: int) -> dict[str, Tensor]:
    """Every parameter and persistent buffer under its checkpoint name."""
    out: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and not name.endswith("inv_freq"):
            out.update(checkpoint_views(name, value.detach(), hidden, is_transposed(model, name)))
    return out


class Checkpoint:
    """Reads tensors of a directory of safetensors files one at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        index = directory / "model.safetensors.index.json"
        single = directory / "model.safetensors"
        try:
            if index.is_file():
                self.files: dict[str, str] = json.loads(index.read_text())["weight_map"]
            elif single.is_file():
                with safetensors.safe_open(str(single), framework="pt") as file:
                    self.files = dict.fromkeys(file.keys(), single.name)
            else:
                got = "neither"
                raise DumpError(
                    4, str(directory), "checkpoint", "model.safetensors or its index", got
                )
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            raise DumpError(
                4, str(directory), "checkpoint", "readable safetensors", str(error)
            ) from error

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for file_name in sorted(set(self.files.values())):
            path = self.directory / file_name
            try:
                with safetensors.safe_open(str(path), framework="pt") as file:
                    for name in sorted(n for n, f in self.files.items() if f == file_name):
                        yield name, file.get_tensor(name)
            except (OSError, safetensors.SafetensorError) as error:
                raise DumpError(
                    4, str(path), "checkpoint", "a safetensors file", str(error)
                ) from error


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.is_meta:
        return False
    a, b = a.detach().cpu().contiguous(), b.contiguous()
    return (
        torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))
        if a.numel()
        else True
    )


def compare_weights(model: nn.Module, checkpoint: Checkpoint) -> dict[str, Any]:
    """Bit for bit, after a cast to the parameter's dtype. `missing`: the checkpoint has it, the
    implementation has no such
    parameter; `unexpected`: the implementation has it, the checkpoint does not."""
    config = getattr(model.config, "text_config", None) or model.config
    loaded = loaded_tensors(model, config.hidden_size)
    beyond = f"model.layers.{config.num_hidden_layers}."  # the MTP layer is not part of the model
    out: dict[str, Any] = {"identical": 0, "different": [], "missing": [], "unexpected": []}
    seen = set()
    for name, value in checkpoint.tensors():
        if name.startswith(beyond):
            continue
        seen.add(name)
        if name not in loaded:
            out["missing"].append(name)
        elif same_bits(loaded[name], value.to(loaded[name].dtype)):
            out["identical"] += 1
        else:
            out["different"].append(name)
    out["unexpected"] = sorted(set(loaded) - seen)
    return {key: sorted(value) if isinstance(value, list) else value for key, value in out.items()}


# First suffix that matches: kind and g. FORMATS section 1.
WEIGHT_RULES = (
    ("embed_tokens.weight", "abs", -4),
    ("layernorm.weight", "one", -6),
    ("model.norm.weight", "one", -6),
    ("indexer.k_norm.weight", "one", -6),
    ("indexer.k_norm.bias", "abs", -6),
    ("e_score_correction_bias", "abs", -6),
    ("indexer.wk.weight", "fan", -4),
    ("q_b_proj.weight", "fan", 2),
    ("indexer.wq_b.weight", "fan", 1),
    ("lm_head.weight", "fan", 1),
    ("mlp.gate.weight", "fan", 1),
    ("", "fan", 0),
)


def synthetic_start(seed: int, name: str, last: int, count: int, bias_offset: float) -> Tensor:
    """The first `count` values of a synthetic tensor. FORMATS section 1."""
    _, kind, g = next(rule for rule in WEIGHT_RULES if name.endswith(rule[0]))
    lanes = philox_lanes(seed, name, count, "<u2").astype(np.int64)
    bell = sum((lanes >> shift) & 15 for shift in (0, 4, 8, 12)) - 30
    shift = next(k for k in range(64) if 4**k >= 85 * last) if kind == "fan" else 0
    value = bell * 2.0 ** (g - shift) + (1 if kind == "one" else 0)
    if name.endswith("e_score_correction_bias"):
        value = value + bias_offset
    return torch.from_numpy(np.asarray(value, dtype=np.float64))


def weights_identity(
    tensors: Callable[[], Iterator[tuple[str, Tensor]]], case: dict[str, Any]
) -> str:
    """`synthetic:SEED` when every tensor starts as the synthetic one does, else a digest."""
    if all(_is_synthetic(name, value, case) for name, value in tensors()):
        return f"synthetic:{case['seed']}"
    digests = {}
    for name, value in tensors():
        data = value.detach().cpu().float().contiguous().numpy().tobytes()
        digests[name] = hashlib.sha256(data).digest()
    total = hashlib.sha256(b"".join(n.encode() + digest for n, digest in sorted(digests.items())))
    return f"sha256:{total.hexdigest()}"


def _is_synthetic(name: str, value: Tensor, case: dict[str, Any]) -> bool:
    if value.is_meta or value.dim() == 0:
        return False
    count = min(SPOT_CHECK, value.numel())
    want = synthetic_start(case["seed"], name, value.shape[-1], count, case["bias_offset"])
    return torch.equal(value.detach().reshape(-1)[:count].cpu().double(), want)


# --- recording ------------------------------------------------------------------------------------

ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
PRODUCTS = {"matmul", "__matmul__", "bmm", "einsum"}
WATCHED = (
    {"topk", "sort", "argsort", "softmax", "linear", "scaled_dot_product_attention"}
    | ADDITIONS
    | PRODUCTS
)
SCOPES = {"attention", "indexer", "moe", "gate", "experts"}


def keep(value: Tensor) -> Tensor:
    """A copy on the host: later in-place operations must not reach it."""
    return value.detach().to("cpu", copy=True)


def first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (tuple, list)):
        return next((v for v in map(first_tensor, value) if v is not None), None)
    if isinstance(value, dict):
        return first_tensor(list(value.values()))
    return None


def all_tensors(*values: Any) -> list[Tensor]:
    """The tensors of nested arguments, in order."""
    out: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            out.append(value)
        elif isinstance(value, (tuple, list)):
            out += all_tensors(*value)
        elif isinstance(value, dict):
            out += all_tensors(*value.values())
    return out


def deinterleave(x: Tensor) -> Tensor:
    """Lanes (0, 2, 4, ..., 1, 3, 5, ...)."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)


def interleave(x: Tensor) -> Tensor:
    """Inverse of deinterleave."""
    return torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)


def in_place_layout(before: Tensor, after: Tensor) -> tuple[Tensor, str]:
    """A rotation keeps the length of each pair of lanes, up to one amplitude. Which lanes of
    `after` are the pairs tells
    its layout: pairs in place, halves in place, or pairs written out de-interleaved. The last is
    converted back."""
    x, y = before.double(), after.double()
    x_pairs = x[..., 0::2] ** 2 + x[..., 1::2] ** 2
    x_halves = sum(part**2 for part in x.chunk(2, dim=-1))
    y_pairs = y[..., 0::2] ** 2 + y[..., 1::2] ** 2
    y_halves = sum(part**2 for part in y.chunk(2, dim=-1))
    gain = y_pairs.sum() / x_pairs.sum().clamp_min(1e-300)
    misfit = {
        "pairs": (y_pairs - gain * x_pairs).abs().sum(),
        "halves": (y_halves - gain * x_halves).abs().sum(),
        "deinterleaved": (y_halves - gain * x_pairs).abs().sum(),
    }
    layout = min(misfit, key=lambda name: float(misfit[name]))
    return (interleave(after) if layout == "deinterleaved" else after), layout


@dataclasses.dataclass
class Frame:
    """One module call in progress: what a crash report names."""

    name: str
    part: Part | None
    shapes: list[list[int]]


@dataclasses.dataclass
class Rotation:
    """The rope lanes of one projection after rotation, as [B,S,heads,rope], and where they sit in a
    head."""

    value: Tensor
    start: int


class Recorder(TorchFunctionMode):
    """Collects the raw material of one forward pass over `S` new tokens with `T` keys in all."""

    def __init__(self, model: nn.Module, sizes: Sizes, wanted: Callable[[str], bool]) -> None:
        super().__init__()
        self.model, self.sizes, self.wanted = model, sizes, wanted
        self.parts = find_parts(model)
        self.moe_layers = {p.layer for p in self.parts.values() if p.role == "moe"}
        self.layouts: dict[str, str] = {}
        self.forced: dict[str, Tensor] = {}
        self.live = False  # the indexer runs with gradients, on detached inputs
        self.live_scores: dict[int, Tensor] = {}  # layer -> B * S * T scores with their graph
        self.recording = False
        self.begin(0, 0, 0)

    def begin(self, B: int, S: int, T: int) -> None:
        self.B, self.S, self.T = B, S, T
        self.raw: dict[tuple[int, str], Any] = {}
        self.rotations: dict[tuple[int, str], Rotation] = {}
        self.stack: list[Frame] = []

    # Module calls.

    def before(self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not self.recording:
            return
        part = self.parts.get(name)
        self.stack.append(
            Frame(name or "model", part, [list(t.shape) for t in all_tensors(args, kwargs)])
        )
        if part and part.role == "o_proj":
            self.put(part.layer, "ctx", first_tensor([args, kwargs]))
        elif part and part.role == "experts":
            self.put_routing(part.layer, all_tensors(args, kwargs))

    def after(
        self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any
    ) -> None:
        if not self.recording or not self.stack:
            return
        part = self.stack.pop().part
        if part is None:
            return
        if part.role == "attention":
            self.put(part.layer, "attention", first_tensor(out))
            maps = [t for t in all_tensors(out)[1:] if self.is_map(t)]
            if maps:
                self.put(part.layer, "attention_weights", maps[0])
        elif part.role == "gate":
            self.put_routing(part.layer, all_tensors(out))
            self.put_logits(part.layer, all_tensors(out))
        elif part.role == "indexer":
            self.raw[part.layer, "indexer_out"] = [keep(t) for t in all_tensors(out)]
        else:
            self.put(part.layer, part.role, first_tensor(out))
            if part.role == "shared":
                self.raw[part.layer, "shared_object"] = out

    def put(self, layer: int, key: str, value: Tensor | None, replace: bool = True) -> None:
        if value is not None and (replace or (layer, key) not in self.raw):
            self.raw[layer, key] = keep(value)

    def put_logits(self, layer: int, tensors: list[Tensor]) -> None:
        shaped = [
            t for t in tensors if t.is_floating_point() and t.shape[-1:] == (self.sizes.experts,)
        ]
        shaped = [t for t in shaped if t.numel() == self.B * self.S * self.sizes.experts]
        if shaped:
            self.put(layer, "router_logits", shaped[0], replace=False)

    def put_routing(self, layer: int, tensors: list[Tensor]) -> None:
        """Indices and weights are the integer and the float tensor with one entry per token and
        chosen expert."""
        size = self.B * self.S * self.sizes.experts_per_token
        shaped = [
            t for t in tensors if t.numel() == size and t.shape[-1] == self.sizes.experts_per_token
        ]
        indices = [t for t in shaped if not t.is_floating_point()]
        weights = [t for t in shaped if t.is_floating_point()]
        if indices and weights:
            self.put(layer, "experts_index", indices[0])
            self.put(layer, "experts_weight", weights[-1])

    def scope(self) -> Part | None:
        for frame in reversed(self.stack):
            if frame.part and frame.part.role in SCOPES:
                return frame.part
        return None

    def inside_indexer(self) -> bool:
        part = self.scope()
        return part is not None and part.role == "indexer"

    def is_map(self, t: Tensor) -> bool:
        B, H, S, T = self.B, self.sizes.heads, self.S, self.T
        return t.is_floating_point() and tuple(t.shape) in ((B, H, S, T), (B, S, H, T))

    # Functions of torch.

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.live and self.recording and self.inside_indexer():
            func = torch.enable_grad()(func)  # whatever no_grad stands around it
        if not self.recording or name not in WATCHED:
            return func(*args, **kwargs)
        part = self.scope()
        out = func(*args, **kwargs)
        if part is None:
            return out
        if name in ("topk", "sort", "argsort"):
            return self.on_order(part, name, args, kwargs, out)
        own = self.stack[-1].part == part  # not inside a child module that has no scope of its own
        if part.role in ("gate", "moe") and own and name in PRODUCTS | {"linear"}:
            self.on_gate_product(part, args, kwargs, out)
        elif part.role == "moe" and name in ADDITIONS:
            self.on_addition(part, args)
        elif part.role == "indexer" and name == "linear":
            self.on_index_linear(part, args, kwargs, out)
        elif part.role == "attention" and name == "softmax":
            self.on_softmax(part, args, kwargs, out)
        elif part.role == "attention" and name == "scaled_dot_product_attention":
            self.on_fused_attention(part, func, args, kwargs)
        elif part.role == "attention" and name in PRODUCTS:
            self.on_attention_product(part, args)
        return out

    def on_order(self, part: Part, name: str, args: tuple, kwargs: dict[str, Any], out: Any) -> Any:
        scores = first_tensor([args, kwargs])
        if scores is None or not scores.is_floating_point():
            return out
        if part.role in ("indexer", "attention"):
            if scores.shape[-1:] == (self.T,) and scores.numel() == self.B * self.S * self.T:
                return self.on_selection(part, name, scores, out)
        elif name == "topk" and scores.shape in (
            (self.B * self.S, self.sizes.experts),
            (self.B, self.S, self.sizes.experts),
        ):
            return self.on_routing(part, out)
        return out

    def on_selection(self, part: Part, name: str, scores: Tensor, out: Any) -> Any:
        """The index scores as the selection sees them, and what it picks."""
        forced = self.forced.get(f"layers.{part.layer}.topk")
        if forced is not None and name == "topk":
            out = _replace_indices(out, forced[..., : self.T], scores)
        indices = out if name == "argsort" else out[1]
        if self.live and scores.requires_grad:
            self.live_scores[part.layer] = scores
        self.put(part.layer, "scores", scores.reshape(self.B, self.S, self.T))
        picked = indices if name == "topk" else indices[..., : self.sizes.topk]
        if forced is not None:
            picked = forced  # as asked for: with -1, and without the repetition that stands for it
        self.put(part.layer, "selected", picked.reshape(self.B, self.S, -1))
        return out

    def on_routing(self, part: Part, out: Any) -> Any:
        forced = self.forced.get(f"layers.{part.layer}.router.experts")
        if forced is not None and out[1].shape[-1] == self.sizes.experts_per_token:
            out = _replace_indices(out, forced, None)
        return out

    def on_gate_product(self, part: Part, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        x = first_tensor([args, kwargs])
        if (
            isinstance(out, Tensor)
            and x is not None
            and x.numel() == self.B * self.S * self.sizes.hidden
        ):
            self.put_logits(part.layer, [out])

    def on_addition(self, part: Part, args: tuple) -> None:
        """routed + shared: where the shared output is one operand, the other is the routed sum."""
        shared = self.raw.get((part.layer, "shared_object"))
        tensors = [a for a in args if isinstance(a, Tensor)]
        if shared is not None and len(tensors) == 2 and any(t is shared for t in tensors):
            other = tensors[1] if tensors[0] is shared else tensors[0]
            if other.numel() == shared.numel():
                self.put(part.layer, "routed_operand", other, replace=False)

    def on_index_linear(self, part: Part, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        """weights_proj that is applied as a function on its weight, not called as a module."""
        x = first_tensor([args, kwargs])
        shape = (self.sizes.ix_heads, self.sizes.hidden)
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        if x is not None and isinstance(weight, Tensor) and tuple(weight.shape) == shape:
            if self.sizes.ix_heads != self.sizes.ix_dim or self.stack[-1].part == part:
                self.put(part.layer, "weights_linear", out, replace=False)

    def on_softmax(self, part: Part, args: tuple, kwargs: dict[str, Any], out: Tensor) -> None:
        logits = first_tensor([args, kwargs])
        if logits is not None and self.is_map(logits):
            self.put(part.layer, "logits", logits, replace=False)
            self.put(part.layer, "softmax", out, replace=False)

    def on_fused_attention(
        self, part: Part, func: Any, args: tuple, kwargs: dict[str, Any]
    ) -> None:
        """Logits and probabilities never exist here: they follow from the arguments."""
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key = given["query"].detach(), given["key"].detach()
        self.put_states(part, query, key)
        if query.dim() != 4 or not (self.wanted("attn.logits") or self.wanted("attn.probs")):
            return
        logits, probs = fused_attention_maps(query, key, given)
        if self.is_map(logits):
            self.raw[part.layer, "derived_logits"], self.raw[part.layer, "derived_probs"] = (
                keep(logits),
                keep(probs),
            )

    def on_attention_product(self, part: Part, args: tuple) -> None:
        tensors = all_tensors(args)
        if len(tensors) == 2:
            self.put_states(
                part,
                tensors[0],
                tensors[1].transpose(-1, -2) if tensors[1].dim() == 4 else tensors[1],
            )

    def put_states(self, part: Part, query: Tensor, key: Tensor) -> None:
        """Whole query and key states: for models that rotate inline, where no rotary function can
        be watched."""
        sizes = self.sizes
        width = sizes.nope + sizes.rope
        if tuple(query.shape) == (self.B, sizes.heads, self.S, width) and tuple(key.shape) == (
            *(self.B, sizes.heads, self.T, width),
        ):
            self.put(part.layer, "query", query[..., sizes.nope :], replace=False)
            self.put(part.layer, "key", key[:, 0, -self.S :, sizes.nope :], replace=False)

    # Rotary functions.

    def on_rotary(self, inputs: list[Tensor], out: Any) -> None:
        part = self.scope()
        if part is None or part.role not in ("attention", "indexer"):
            return
        outputs = all_tensors(out)
        for x in inputs:
            y = next((t for t in outputs if t.shape == x.shape), None)
            if y is None:
                continue
            outputs = [t for t in outputs if t is not y]
            self.match_rotation(part, x.cpu(), keep(y))

    def sources(self, part: Part) -> list[tuple[str, Tensor]]:
        """The projections that have rope lanes, as [B,S,heads,dim]."""
        if part.role == "attention":
            shapes = {"q_b": self.sizes.heads, "kv_a": 1}
        else:
            shapes = {"wq_b": self.sizes.ix_heads, "k_norm": 1}
        found = [(key, self.raw.get((part.layer, key)), heads) for key, heads in shapes.items()]
        return [(k, v.reshape(self.B, self.S, heads, -1)) for k, v, heads in found if v is not None]

    def match_rotation(self, part: Part, x: Tensor, y: Tensor) -> None:
        """Finds which lanes of which projection were rotated: their values are the function's
        input."""
        for key, source in self.sources(part):
            if (part.layer, key) in self.rotations:
                continue
            for start, permuted, swapped in self.arrangements(part, source):
                lanes = source[..., start : start + self.sizes.rope]
                shown = deinterleave(lanes) if permuted else lanes
                shown = shown.transpose(1, 2) if swapped else shown
                if not _same_values(x, shown):
                    continue
                value = y.reshape(shown.shape)
                value = value.transpose(1, 2) if swapped else value
                canonical, layout = in_place_layout(lanes, value)
                self.layouts["main" if part.role == "attention" else "indexer"] = layout
                self.rotations[part.layer, key] = Rotation(canonical, start)
                return

    def arrangements(self, part: Part, source: Tensor) -> Iterator[tuple[int, bool, bool]]:
        last = source.shape[-1] - self.sizes.rope
        starts = (last, 0) if part.role == "attention" else (0, last)
        for start in dict.fromkeys(starts):
            for permuted in (False, True):
                yield start, permuted, False
                yield start, permuted, True


def _same_values(x: Tensor, shown: Tensor) -> bool:
    if x.numel() != shown.numel() or (
        x.dim() == 4 and shown.shape[1] != 1 and shown.shape[2] != 1 and x.shape != shown.shape
    ):
        return False
    return torch.equal(x.double().reshape(shown.shape).nan_to_num(), shown.double().nan_to_num())


def _replace_indices(out: Any, forced: Tensor, scores: Tensor | None) -> Any:
    """A topk result with other indices. -1 repeats the row's first pick, which a scatter or a mask
    does not notice."""
    own = out[1]
    wanted = forced.to(own.device).to(own.dtype).reshape(-1, forced.shape[-1])
    if scores is not None:
        wanted = wanted.sort(dim=-1, descending=True).values
        if wanted.shape[-1] < own.shape[-1]:
            wanted = torch.cat(
                (wanted, wanted.new_full((wanted.shape[0], own.shape[-1] - wanted.shape[-1]), -1)),
                dim=-1,
            )
    wanted = wanted[:, : own.shape[-1]].reshape(own.shape)
    first = wanted[..., :1]
    wanted = torch.where(wanted < 0, first, wanted)
    indices = torch.where(first < 0, own, wanted)
    values = out[0] if scores is None else scores.gather(-1, indices)
    return torch.return_types.topk((values, indices))


def fused_attention_maps(
    query: Tensor, key: Tensor, given: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Logits and probabilities of a fused attention call, from its own arguments, in float32 or
    better."""
    exact = torch.promote_types(query.dtype, torch.float32)
    scale = given.get("scale")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = torch.matmul(query.to(exact), key.to(exact).transpose(-1, -2)) * scale
    masked, mask = logits, given.get("attn_mask")
    if given.get("is_causal"):
        causal = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        masked = masked.masked_fill(~causal, -math.inf)
    if isinstance(mask, Tensor):
        mask = mask.detach()
        masked = (
            masked.masked_fill(~mask, -math.inf)
            if mask.dtype == torch.bool
            else masked + mask.to(exact)
        )
    return logits, masked.softmax(dim=-1).nan_to_num(0.0)


ROTARY = re.compile(r"(apply|rotate).*(rotary|rope)|rotary_pos_emb|rotary_emb$", re.IGNORECASE)


def _code_globals(cls: type) -> Iterator[dict[str, Any]]:
    """The namespaces in which the methods of a class look up functions."""
    for base in cls.__mro__:
        for value in vars(base).values():
            function = inspect.unwrap(value) if callable(value) else None
            if (
                isinstance(function, types.FunctionType)
                and function.__module__.split(".")[0] != "torch"
            ):
                yield function.__globals__


@contextlib.contextmanager
def watch_rotary(recorder: Recorder) -> Iterator[None]:
    """Wraps the rotary functions in the namespaces of the attention and indexer classes."""
    roles = ("attention", "indexer")
    owners = {
        type(recorder.model.get_submodule(n)) for n, p in recorder.parts.items() if p.role in roles
    }
    undo: list[tuple[Any, str, Any]] = []
    spaces = {id(space): space for cls in owners for space in _code_globals(cls)}
    for space in spaces.values():
        for name, value in list(space.items()):
            if ROTARY.search(name) and callable(value) and not isinstance(value, type):
                undo.append((space, name, value))
                space[name] = _watched(recorder, value)
    for cls in owners:
        for name, value in list(vars(cls).items()):
            if ROTARY.search(name) and isinstance(value, (types.FunctionType, staticmethod)):
                undo.append((cls, name, value))
                inner = value.__func__ if isinstance(value, staticmethod) else value
                wrapped = _watched(recorder, inner)
                setattr(
                    cls, name, staticmethod(wrapped) if isinstance(value, staticmethod) else wrapped
                )
    try:
        yield
    finally:
        for owner, name, value in reversed(undo):
            if isinstance(owner, dict):
                owner[name] = value
            else:
                setattr(owner, name, value)


def _watched(recorder: Recorder, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not recorder.recording:
            return function(*args, **kwargs)
        inputs = [t.detach().clone() for t in all_tensors(args, kwargs) if t.is_floating_point()]
        out = function(*args, **kwargs)
        recorder.on_rotary(inputs, out)
        return out

    return call


@contextlib.contextmanager
def watch_modules(recorder: Recorder) -> Iterator[None]:
    handles = []
    for name, module in recorder.model.named_modules():
        before = functools.partial(recorder.before, name)
        after = functools.partial(recorder.after, name)
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def live_indexers(recorder: Recorder) -> Iterator[None]:
    """Cuts the indexers off from the rest of the model and lets them have gradients."""

    def detach(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        return detached(args), detached(kwargs)

    undo: list[Callable[[], Any]] = []
    for name, part in recorder.parts.items():
        if part.role == "indexer":
            indexer = recorder.model.get_submodule(name)
            undo.append(indexer.register_forward_pre_hook(detach, with_kwargs=True).remove)
            trained = any(parameter.requires_grad for parameter in indexer.parameters())
            for parameter in () if trained else indexer.parameters():
                undo.append(functools.partial(parameter.requires_grad_, parameter.requires_grad))
                parameter.requires_grad_(parameter.is_floating_point())
    recorder.live = True
    try:
        yield
    finally:
        recorder.live = False
        for step in undo:
            step()


def detached(value: Any) -> Any:
    """Nested arguments with every tensor cut off from its graph."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (tuple, list):
        return type(value)(detached(v) for v in value)
    return {k: detached(v) for k, v in value.items()} if type(value) is dict else value


# --- from raw material to taps --------------------------------------------------------------------


class Taps:
    """The canonical taps of one pass (or chunk), from what a Recorder saw."""

    def __init__(self, recorder: Recorder, visible: Tensor, dense: bool) -> None:
        self.r, self.visible, self.dense = recorder, visible, dense
        self.out: dict[str, Tensor] = {}
        self.derived: set[str] = set()
        self.reasons: dict[str, str] = {}

    def build(self) -> None:
        hidden = self.r.sizes.hidden
        self.token("embed", -1, "embed", hidden)
        for layer in sorted({layer for layer, _ in self.r.raw if layer >= 0}):
            self.attention(layer)
            self.indexer(layer)
            self.maps(layer)
            self.block(layer)
        self.token("final_norm", -1, "final_norm", hidden)

    def get(self, layer: int, *keys: str) -> Tensor | None:
        return next((self.r.raw[layer, key] for key in keys if (layer, key) in self.r.raw), None)

    def put(self, name: str, value: Tensor | None, *shape: int) -> None:
        """A value of another shape than the format's is no tap: it is listed with its reason."""
        if not self.r.wanted(name):
            return
        if value is None:
            self.reasons.setdefault(name, "not found")
        elif tuple(value.shape) != shape:
            self.reasons[name] = f"expected {list(shape)}, got {list(value.shape)}"
        else:
            self.out[name] = value.contiguous()

    def token(self, name: str, layer: int, key: str, *rest: int) -> None:
        value = self.get(layer, key)
        shape = (self.r.B, self.r.S, *rest)
        if value is not None and value.numel() == math.prod(shape):
            value = value.reshape(shape)
        self.put(name, value, *shape)

    def attention(self, layer: int) -> None:
        r, sizes, at = self.r, self.r.sizes, f"layers.{layer}."
        self.token(at + "attn_norm", layer, "attn_norm", sizes.hidden)
        self.token(at + "q_latent", layer, "q_norm", sizes.q_lora)
        self.token(at + "kv_latent", layer, "kv_norm", sizes.kv_lora)
        q = self.get(layer, "q_b")
        q = q.reshape(r.B, r.S, sizes.heads, -1) if q is not None else None
        rotated = r.rotations.get((layer, "q_b"))
        first = rotated is not None and rotated.start == 0  # rope before nope
        nope = None if q is None else q[..., sizes.rope :] if first else q[..., : sizes.nope]
        self.put(at + "q_nope", nope, r.B, r.S, sizes.heads, sizes.nope)
        self.put(
            at + "q_rope",
            self.rope(layer, "q_b", "query", sizes.heads),
            r.B,
            r.S,
            sizes.heads,
            sizes.rope,
        )
        k_rope = self.rope(layer, "kv_a", "key", 1)
        self.put(at + "k_rope", None if k_rope is None else k_rope.squeeze(2), r.B, r.S, sizes.rope)
        self.token(at + "attn.ctx", layer, "ctx", sizes.heads, sizes.v)
        self.token(at + "attn.out", layer, "attention", sizes.hidden)

    def rope(self, layer: int, projection: str, state: str, heads: int) -> Tensor | None:
        """Rotated lanes [B,S,heads,rope]: from the rotary function, else from the states that
        attention was given."""
        rotated = self.r.rotations.get((layer, projection))
        if rotated is not None:
            return rotated.value
        before, after = self.get(layer, projection), self.get(layer, state)
        if before is None or after is None:
            return None
        lanes = before.reshape(self.r.B, self.r.S, heads, -1)[..., -self.r.sizes.rope :]
        after = after.transpose(1, 2) if after.dim() == 4 else after.unsqueeze(2)
        canonical, self.r.layouts["main"] = in_place_layout(lanes, after)
        return canonical

    def indexer(self, layer: int) -> None:
        r, sizes, at = self.r, self.r.sizes, f"layers.{layer}."
        self.put(
            at + "ix.q",
            self.index_states(layer, "wq_b", sizes.ix_heads),
            r.B,
            r.S,
            sizes.ix_heads,
            sizes.ix_dim,
        )
        k = self.index_states(layer, "k_norm", 1)
        self.put(at + "ix.k", None if k is None else k.squeeze(2), r.B, r.S, sizes.ix_dim)
        weights = self.get(layer, "weights_proj", "weights_linear")
        if weights is not None:
            weights = weights.to(torch.promote_types(weights.dtype, torch.float32)).reshape(
                r.B, r.S, -1
            )
            weights = weights * sizes.ix_heads**-0.5 * sizes.ix_dim**-0.5
            self.derived.add(at + "ix.weights")
        self.put(at + "ix.weights", weights, r.B, r.S, sizes.ix_heads)
        self.selection(layer, at)

    def index_states(self, layer: int, key: str, heads: int) -> Tensor | None:
        """Whole index queries or keys: the rotated lanes put back between the others."""
        states, rotated = self.get(layer, key), self.r.rotations.get((layer, key))
        if states is None or rotated is None:
            return None
        states = states.reshape(self.r.B, self.r.S, heads, -1)
        end = rotated.start + self.r.sizes.rope
        parts = [states[..., : rotated.start], rotated.value, states[..., end:]]
        dtype = functools.reduce(torch.promote_types, (p.dtype for p in parts))
        return torch.cat([p.to(dtype) for p in parts], dim=-1)

    def selection(self, layer: int, at: str) -> None:
        r, topk = self.r, self.r.sizes.topk
        scores, picked = self.get(layer, "scores"), self.get(layer, "selected")
        outputs = r.raw.get((layer, "indexer_out"), [])
        if scores is None:  # a public output of the indexer, if it is no 0 / -inf mask
            shaped = [
                t for t in outputs if t.is_floating_point() and tuple(t.shape) == (r.B, r.S, r.T)
            ]
            scores = next((t for t in shaped if ((t != 0) & t.isfinite()).any()), None)
        if picked is None:
            picked = next(
                (
                    t
                    for t in outputs
                    if not t.is_floating_point() and t.dtype != torch.bool and t.dim() == 3
                ),
                None,
            )
        raw = scores
        if scores is not None:
            scores = scores.masked_fill(~self.visible & (scores < MASKED_SCORE), -math.inf)
        self.put(at + "ix.scores", scores, r.B, r.S, r.T)
        if not self.dense:
            self.put(at + "topk", self.visible_picks(picked, raw, topk), r.B, r.S, topk)

    def visible_picks(
        self, picked: Tensor | None, scores: Tensor | None, width: int
    ) -> Tensor | None:
        """Ascending, -1 at the end. A pick of a masked key is filling and becomes -1; one of a key
        that should have been
        masked but was not is kept: it is an error of the model that the judge must see."""
        if picked is None or picked.dim() != 3 or picked.shape[:2] != self.visible.shape[:2]:
            return picked
        picked = picked.long()
        inside = (picked >= 0) & (picked < self.r.T)
        safe = picked.clamp(0, self.r.T - 1)
        hidden = ~self.visible.gather(-1, safe)
        masked = hidden if scores is None else hidden & (scores.gather(-1, safe) < MASKED_SCORE)
        picked = (
            torch.where((inside & masked) | (picked < 0), torch.iinfo(torch.int64).max, picked)
            .sort(dim=-1)
            .values
        )
        picked = torch.where(picked == torch.iinfo(torch.int64).max, -1, picked).to(torch.int32)
        if picked.shape[-1] > width and (picked[..., width:] == -1).all():
            picked = picked[..., :width]
        return torch.nn.functional.pad(picked, (0, max(0, width - picked.shape[-1])), value=-1)

    def maps(self, layer: int) -> None:
        r, at = self.r, f"layers.{layer}."
        shape = (r.B, r.sizes.heads, r.S, r.T)
        logits, probs = self.get(layer, "logits"), self.get(layer, "attention_weights", "softmax")
        if logits is None and (layer, "derived_logits") in r.raw:
            logits = r.raw[layer, "derived_logits"]
            self.derived.add(at + "attn.logits")
        if probs is None and (layer, "derived_probs") in r.raw:
            probs = r.raw[layer, "derived_probs"]
            self.derived.add(at + "attn.probs")
        for name, value in (("attn.logits", logits), ("attn.probs", probs)):
            if value is not None and tuple(value.shape) != shape and value.dim() == 4:
                value = value.transpose(1, 2)
            self.put(at + name, value, *shape)

    def block(self, layer: int) -> None:
        sizes, at = self.r.sizes, f"layers.{layer}."
        self.token(at + "ffn_norm", layer, "ffn_norm", sizes.hidden)
        if layer in self.r.moe_layers:
            self.router(layer, at)
            routed = "experts" if (layer, "experts") in self.r.raw else "routed_operand"
            self.token(at + "moe.routed", layer, routed, sizes.hidden)
            self.token(at + "moe.shared", layer, "shared", sizes.hidden)
        self.token(
            at + "mlp.out", layer, "moe" if layer in self.r.moe_layers else "mlp", sizes.hidden
        )
        self.token(at + "hidden", layer, "layer", sizes.hidden)

    def router(self, layer: int, at: str) -> None:
        r, K = self.r, self.r.sizes.experts_per_token
        self.token(at + "router.logits", layer, "router_logits", r.sizes.experts)
        index, weight = self.get(layer, "experts_index"), self.get(layer, "experts_weight")
        if index is not None and weight is not None:
            order = index.reshape(r.B, r.S, K).long().sort(dim=-1)
            index, weight = (
                order.values.to(torch.int32),
                weight.reshape(r.B, r.S, K).gather(-1, order.indices),
            )
        self.put(at + "router.experts", index, r.B, r.S, K)
        self.put(at + "router.weights", weight, r.B, r.S, K)


def expected_taps(layers: int, moe_layers: set[int], dense: bool) -> list[str]:
    """Every forward tap of this model, in execution order."""
    names = ["embed"]
    for layer in range(layers):
        for tap in LAYER_TAPS:
            if (tap not in MOE_TAPS or layer in moe_layers) and not (tap == "topk" and dense):
                names.append(f"layers.{layer}.{tap}")
    return [*names, "final_norm", "logits", "loss.lm"]


def expected_kl_taps(layers: int) -> list[str]:
    return [f"layers.{layer}.{tap}" for layer in range(layers) for tap in KL_TAPS] + ["loss.kl"]


def indexer_kl(probs: Tensor, scores: Tensor, support: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """One layer's KL taps by SPEC 2, loss.kl with its graph: for models without a KL of their own.

    probs: [B,H,S,T]; scores (with their graph) and support: [B,S,T]; valid: [B,S].
    """
    support = support & valid[..., None]
    target = (probs.sum(dim=1) * support).to(torch.promote_types(probs.dtype, torch.float32))
    target = target / target.sum(dim=-1, keepdim=True).masked_fill(~valid[..., None], 1)
    # A row of a padded query sees nothing: equal scores there, no NaN, cut off below.
    seen = torch.where(valid[..., None], -math.inf, 0.0)
    logs = torch.log_softmax(torch.where(support, scores.to(target.dtype), seen), dim=-1)
    logs = torch.where(support, logs, 0.0)
    rows = (torch.xlogy(target, target) - target * logs).sum(dim=-1)
    (slope,) = torch.autograd.grad(rows.sum(), scores, retain_graph=True)
    return {
        "kl.target": target,
        "kl.student": torch.where(support, logs.exp(), 0.0).detach(),
        "kl.rows": rows.detach(),
        "kl.dscores": slope,
        "loss.kl": rows[valid].mean(),
    }


def join_chunks(name: str, pieces: list[Tensor], T: int) -> Tensor:
    """The concatenation over the chunks, keys padded to the final length: -inf in scores and
    logits, 0 in probabilities."""
    tap = name.partition(".")[2].partition(".")[2] if name.startswith("layers.") else name
    if tap in ("ix.scores", "attn.logits", "attn.probs"):
        fill = 0.0 if tap == "attn.probs" else -math.inf
        pieces = [torch.nn.functional.pad(p, (0, T - p.shape[-1]), value=fill) for p in pieces]
    return torch.cat(pieces, dim=2 if tap in ("attn.logits", "attn.probs") else 1)


# --- running a model ------------------------------------------------------------------------------


@dataclasses.dataclass
class Options:
    """How a model is run. None leaves the model's own setting."""

    backward: bool = False
    attn_implementation: str | None = None
    experts_implementation: str | None = None
    mask: str = "given"
    chunks: tuple[int, ...] = ()
    use_cache: bool | None = None
    gradient_checkpointing: bool = False
    taps: tuple[str, ...] = ("*",)
    training_outputs: bool = True
    kl: str = ""  # one of KL_STAGES: the indexer's KL and its gradients

    @property
    def mode(self) -> str:
        return f"kl-{self.kl}" if self.kl else "backward" if self.backward else "forward"

    def wanted(self, name: str) -> bool:
        short = re.sub(r"^layers\.\d+\.", "", name)
        if self.kl and short in KL_INPUTS:
            return True
        return any(fnmatch.fnmatchcase(n, p) for n in (name, short) for p in self.taps)


def capture(
    model: nn.Module,
    case: dict[str, Any],
    *,
    backward: bool = False,
    attn_implementation: str | None = "eager",
    experts_implementation: str | None = "eager",
    mask: str | None = None,
    chunks: tuple[int, ...] | list[int] | None = None,
    batch: dict[str, np.ndarray] | None = None,
    forced: dict[str, Any] | None = None,
    use_cache: bool | None = None,
    gradient_checkpointing: bool = False,
    taps: tuple[str, ...] = ("*",),
    training_outputs: bool = True,
    kl: str = "",
) -> Capture:
    """Runs `model` on the case's batch (or `batch`) and returns its taps, and its gradients with
    `backward`.

    attn_implementation, experts_implementation: set on the model where it has such a switch; None
    leaves it as it is.
    mask: "given" or "none" (no attention mask is passed at all); default: what the case says.
    chunks: lengths of a chunked prefill and decode through the model's own cache; default: the
    case's.
    forced: taps `layers.N.topk` and `layers.N.router.experts` that replace the model's own
    decisions.
    taps: patterns of the taps to keep, with or without `layers.N.`.
    kl: "warmup" or "sparse": the indexer's KL, its taps and gradients, instead of the LM loss. The
    model's own where it has one, else SPEC 2 on its own index scores and probabilities.
    Throws ModelCrash when the model raises, DumpError when the request makes no sense for this
    case or model.
    """
    case = check_case(case, "case")
    options = Options(
        backward=backward,
        attn_implementation=attn_implementation,
        experts_implementation=experts_implementation,
        mask=mask or ("given" if case.get("mask_given", True) else "none"),
        chunks=tuple(case["chunks"] if chunks is None else chunks),
        use_cache=use_cache,
        gradient_checkpointing=gradient_checkpointing,
        taps=tuple(taps),
        training_outputs=training_outputs,
        kl=kl,
    )
    return _Run(model, case, options, batch, forced).run()


class _Run:
    """One capture: settings applied, passes made, settings put back."""

    def __init__(
        self,
        model: nn.Module,
        case: dict[str, Any],
        options: Options,
        batch: dict[str, np.ndarray] | None,
        forced: dict[str, Any] | None,
    ) -> None:
        self.model, self.case, self.options = model, case, options
        self.dense = case["overrides"].get("use_sparse_attention") is False
        self.dense |= options.kl == "warmup"
        # In dense mode index_topk of the model is only a switch: the case's own value never shows.
        self.sizes = Sizes.of(model.config)
        self.batch = (
            complete_batch(batch) if batch is not None else make_batch(case, self.sizes.vocab)
        )
        self.forced = {
            name: torch.as_tensor(np.asarray(value)) for name, value in (forced or {}).items()
        }
        self.out = Capture()
        self.phase = "forward"
        self.error: Exception | None = None
        self.check()

    def check(self) -> None:
        if self.options.mask not in ("given", "none"):
            raise DumpError(2, "capture", "mask", "given or none", self.options.mask)
        if self.options.mask == "none" and (self.batch["attention_mask"] == 0).any():
            hint = "without a mask padding is visible: use a case with pad 0 (tiny-nopad)"
            raise DumpError(
                4,
                "capture",
                "mask none",
                "a batch without padding",
                f"pad {self.case['pad']}",
                hint,
            )
        if self.options.kl not in ("", *KL_STAGES):
            raise DumpError(2, "capture", "kl", " or ".join(KL_STAGES), self.options.kl)
        if self.options.chunks and (self.options.backward or self.options.kl):
            got = f"chunks {list(self.options.chunks)}"
            raise DumpError(2, "capture", f"mode {self.options.mode}", "one pass", got)
        if self.options.chunks and sum(self.options.chunks) != self.case["S"]:
            raise DumpError(
                2, "capture", "chunks", f"a sum of {self.case['S']}", str(list(self.options.chunks))
            )
        if self.batch["input_ids"].shape != (self.case["B"], self.case["S"]):
            want = [self.case["B"], self.case["S"]]
            raise DumpError(
                4, "batch", "input_ids", str(want), str(list(self.batch["input_ids"].shape))
            )

    def run(self) -> Capture:
        was_training = self.model.training
        with contextlib.ExitStack() as stack:
            stack.callback(self.model.train, was_training)
            self.settings(stack)
            recorder = Recorder(self.model, self.sizes, self.options.wanted)
            try:
                stack.enter_context(watch_rotary(recorder))
                stack.enter_context(watch_modules(recorder))
                if self.options.kl:
                    self.gradients(self.kl_objective(recorder))
                else:
                    self.gradients(self.passes(recorder))
                    self.training_outputs()
            except DumpError:
                raise
            except Exception as error:  # the model's own code may raise anything
                self.crash(recorder, error)
            finally:
                recorder.recording = False
                self.finish(recorder)
        if self.out.failure:
            raise ModelCrash(self.out) from self.error
        return self.out

    def settings(self, stack: contextlib.ExitStack) -> None:
        options, model = self.options, self.model
        for kind in ("attn", "experts"):
            value = getattr(options, f"{kind}_implementation")
            if value is not None:
                _set_implementation(model, kind, value, stack)
        if self.dense:
            _widen_selection(model, self.case["S"], stack)
        model.train(options.backward or bool(options.kl))
        if options.gradient_checkpointing:
            verb = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
            getattr(model, f"{verb}_checkpointing_enable")()
            stack.callback(getattr(model, f"{verb}_checkpointing_disable"))

    def passes(self, recorder: Recorder) -> Tensor | None:
        """All chunks (or the one pass); returns the loss that the model computed."""
        lengths = self.options.chunks or (self.case["S"],)
        pieces: dict[str, list[Tensor]] = {}
        cache, start, out = None, 0, None
        for length in lengths:
            out = self.one_pass(recorder, start, start + length, cache, pieces)
            cache = getattr(out, "past_key_values", None)
            start += length
            if start < self.case["S"] and cache is None:
                raise DumpError(4, "capture", "chunks", "a cache in the model's output", "none")
        T = self.case["S"]
        for name, parts in pieces.items():
            whole = len(parts) == len(lengths)
            if whole:
                self.out.taps[name] = join_chunks(name, parts, T) if len(parts) > 1 else parts[0]
        loss = own_lm_loss(out)
        self.loss(loss)
        return loss

    def one_pass(
        self, recorder: Recorder, start: int, end: int, cache: Any, pieces: dict[str, list[Tensor]]
    ) -> Any:
        B = self.case["B"]
        recorder.begin(B, end - start, end)
        recorder.forced = {name: value[:, start:end] for name, value in self.forced.items()}
        mask = torch.from_numpy(self.batch["attention_mask"]).bool()
        order = torch.arange(end)
        visible = (order[None, None, :] <= order[None, start:end, None]) & mask[:, None, :end]
        taps = Taps(recorder, visible, self.dense)
        try:
            grad = torch.enable_grad() if self.options.backward else torch.no_grad()
            with grad, recorder:
                recorder.recording = True
                out = self.model(**self.arguments(start, end, cache))
        finally:
            recorder.recording = False
            taps.build()
            self.logits(taps, locals().get("out"))
            for name, value in taps.out.items():
                pieces.setdefault(name, []).append(value)
            self.out.reasons.update(taps.reasons)
            self.out.derived = sorted({*self.out.derived, *(taps.derived & set(taps.out))})
            if not self.options.chunks:
                self.out.taps.update(taps.out)
        return out

    def logits(self, taps: Taps, out: Any) -> None:
        if out is None:
            return
        value = getattr(out, "logits", None)
        value = (
            first_tensor(out) if value is None and not hasattr(out, "last_hidden_state") else value
        )
        r = taps.r
        taps.put("logits", None if value is None else keep(value), r.B, r.S, self.sizes.vocab)

    def arguments(self, start: int, end: int, cache: Any) -> dict[str, Any]:
        device = next(self.model.parameters()).device
        tensors = {name: torch.from_numpy(value).to(device) for name, value in self.batch.items()}
        out: dict[str, Any] = {
            name: tensors[name][:, start:end] for name in ("input_ids", "position_ids")
        }
        if self.options.mask == "given":
            out["attention_mask"] = tensors["attention_mask"][:, :end]
        if self.options.chunks:
            return {**out, "past_key_values": cache, "use_cache": True}
        use_cache = False if self.options.gradient_checkpointing else self.options.use_cache
        if use_cache is not None:
            out["use_cache"] = use_cache
        if "labels" in _parameters(self.model.forward):
            out["labels"] = tensors["labels"]
        return out

    def training_switches(self) -> list[str]:
        """Public training outputs that this implementation offers by name."""
        offered = _parameters(self.model.forward)
        for module in (self.model, getattr(self.model, "base_model", None)):
            offered |= {
                f"output_{name}" for name in getattr(module, "_can_record_outputs", None) or ()
            }
        return [f"output_{name}" for name in TRAINING_OUTPUTS if f"output_{name}" in offered]

    def training_outputs(self) -> Tensor | None:
        """ix.scores (where no hook saw them), kl.target and loss.kl as the implementation hands
        them out; returns its KL loss, with a graph in the KL modes.

        A pass of its own: these switches may add terms to the loss."""
        switches = self.training_switches() if self.options.training_outputs else []
        if not switches or self.options.chunks:
            return None
        self.phase = "training outputs"
        with torch.enable_grad() if self.options.kl else torch.no_grad():
            arguments = self.arguments(0, self.case["S"], None)
            out = self.model(**arguments, **dict.fromkeys(switches, True))
        self.per_layer(getattr(out, "indexer_scores", None), "ix.scores")
        targets = getattr(out, "indexer_kl_targets", None) or getattr(out, "indexer_targets", None)
        self.per_layer(targets, "kl.target")
        loss = next((v for v in (getattr(out, n, None) for n in KL_FIELDS) if v is not None), None)
        helper = getattr(sys.modules[type(self.model).__module__], "compute_indexer_kl_loss", None)
        if loss is None and helper is not None and targets:
            loss = helper(out.indexer_scores, targets)
        self.out.metadata["training_outputs"] = canonical_json(switches)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            return None
        self.out.taps["loss.kl"] = keep(loss).reshape(())
        return loss

    def kl_loss(self) -> Tensor:
        """kl_objective for a training step: nothing recorded but what it needs."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.model.train, self.model.training)
            self.settings(stack)
            recorder = Recorder(self.model, self.sizes, self.options.wanted)
            stack.enter_context(watch_modules(recorder))
            return self.kl_objective(recorder)

    def lm_loss(self) -> Tensor | None:
        """The model's own LM loss on the whole batch."""
        return own_lm_loss(self.model(**self.arguments(0, self.case["S"], None)))

    def kl_objective(self, recorder: Recorder) -> Tensor:
        """The indexer's KL with its graph; its taps on the way.

        Where the model has a KL of its own, that one is differentiated, leaks and all."""
        with live_indexers(recorder):
            self.passes(recorder)
        own = self.training_outputs()
        if own is not None and not own.requires_grad:
            raise DumpError(4, "capture", f"mode {self.options.mode}", "a KL with a graph", "none")
        losses = [self.layer_kl(recorder, layer) for layer in sorted(recorder.live_scores)]
        if own is None and len(losses) != self.sizes.layers:
            want = f"index scores of {self.sizes.layers} layers, as a topk or sort inside them sees"
            got = f"those of {len(losses)}"
            raise DumpError(4, "capture", f"mode {self.options.mode}", want, got)
        self.out.metadata["kl_source"] = "spec" if own is None else "own"
        if own is not None:
            return own
        loss = torch.stack(losses).mean()
        self.out.taps["loss.kl"] = keep(loss)
        self.out.derived.append("loss.kl")
        return loss

    def layer_kl(self, recorder: Recorder, layer: int) -> Tensor:
        at, shape = f"layers.{layer}.", (recorder.B, recorder.S, recorder.T)
        scores = recorder.live_scores[layer].reshape(shape)
        missing = [n for n in KL_INPUTS[: 1 if self.dense else 2] if at + n not in self.out.taps]
        if missing:
            want = f"the taps {at}{missing[0]} of the forward pass"
            raise DumpError(4, "capture", f"mode {self.options.mode}", want, "none")
        valid = torch.from_numpy(self.batch["attention_mask"]).bool()
        support = torch.ones(recorder.S, recorder.T).tril().bool() & valid[:, None, :]
        if not self.dense:
            picked = self.out.taps[at + "topk"].long()
            chosen = torch.zeros(*picked.shape[:2], recorder.T + 1, dtype=torch.bool)
            support &= chosen.scatter(2, picked.masked_fill(picked < 0, recorder.T), True)[..., :-1]
        tensors = (self.out.taps[at + "attn.probs"], support, valid)
        probs, support, valid = (value.to(scores.device) for value in tensors)
        found = indexer_kl(probs, scores, support, valid)
        for name, value in found.items():
            if self.options.wanted(at + name) and at + name not in self.out.taps:
                self.out.taps[at + name] = keep(value)
                self.out.derived.append(at + name)
        return found["loss.kl"]

    def per_layer(self, values: Any, tap: str) -> None:
        shape = (self.case["B"], self.case["S"], self.case["S"])
        for layer, value in enumerate(values if isinstance(values, (tuple, list)) else ()):
            name = f"layers.{layer}.{tap}"
            if (
                isinstance(value, Tensor)
                and tuple(value.shape) == shape
                and self.options.wanted(name)
            ):
                self.out.taps.setdefault(name, keep(value))

    def loss(self, loss: Tensor | None) -> None:
        if not self.options.wanted("loss.lm"):
            return
        if loss is not None:
            self.out.taps["loss.lm"] = keep(loss).reshape(())
        elif "logits" in self.out.taps:  # chunks, or a model without labels
            logits = self.out.taps["logits"]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            labels = torch.from_numpy(self.batch["labels"])[:, 1:].reshape(-1)
            rows = logits[:, :-1].reshape(-1, logits.shape[-1])
            self.out.taps["loss.lm"] = nn.functional.cross_entropy(rows, labels, ignore_index=-100)
            self.out.derived.append("loss.lm")

    def gradients(self, loss: Tensor | None) -> None:
        if self.options.mode == "forward":
            return
        if loss is None or not loss.requires_grad:
            got = "no loss" if loss is None else "a loss without a graph"
            raise DumpError(
                4, "capture", "mode backward", "a loss from the model when labels are passed", got
            )
        self.phase = "backward"
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        none, filled = [], {}
        for name, parameter in self.model.named_parameters():
            transposed = is_transposed(self.model, name)
            if parameter.grad is not None:
                views = checkpoint_views(name, parameter.grad, self.sizes.hidden, transposed)
                filled.update({f"grad.{n}": keep(v).contiguous() for n, v in views})
            elif parameter.requires_grad:
                none += [
                    n
                    for n, _ in checkpoint_views(
                        name, parameter.detach(), self.sizes.hidden, transposed
                    )
                ]
        if self.options.kl:  # nothing but the indexer has a gradient, or it is a leak
            filled = {n: v for n, v in filled.items() if ".indexer." in n or bool((v != 0).any())}
        else:
            self.idle_experts(none, filled)
        self.out.taps.update({n: v for n, v in filled.items() if self.options.wanted(n)})
        self.out.metadata["gradients_none"] = canonical_json(sorted(none))
        self.model.zero_grad(set_to_none=True)

    def idle_experts(self, none: list[str], filled: dict[str, Tensor]) -> None:
        """Experts as single modules: no token, no gradient tensor, which means zero."""
        trained = {name.split(".experts.")[0] for name in filled if ".experts." in name}
        loaded = loaded_tensors(self.model, self.sizes.hidden)
        for name in [
            n for n in none if ".experts." in n and f"grad.{n.split('.experts.')[0]}" in trained
        ]:
            self.out.taps[f"grad.{name}"] = torch.zeros_like(loaded[name], device="cpu")

    def crash(self, recorder: Recorder, error: Exception) -> None:
        self.error = error
        frame = recorder.stack[-1] if recorder.stack and self.phase == "forward" else None
        self.out.failure = {
            "phase": self.phase,
            "where": frame.name if frame else self.phase,
            "message": f"{type(error).__name__}: {error}"[:4000],
            "shapes": frame.shapes if frame else [],
            "raised_at": _raised_at(error),
        }

    def finish(self, recorder: Recorder) -> None:
        layers = max((p.layer for p in recorder.parts.values()), default=-1) + 1
        layers = max(layers, self.sizes.layers)
        expected = expected_taps(layers, recorder.moe_layers, self.dense)
        expected += expected_kl_taps(layers) if self.options.kl else []
        order = {name: rank for rank, name in enumerate(expected)}
        ranked = sorted(self.out.taps.items(), key=lambda item: order.get(item[0], len(order)))
        self.out.taps = dict(ranked)
        self.out.missing = [
            n for n in expected if n not in self.out.taps and self.options.wanted(n)
        ]
        self.out.reasons = {n: self.out.reasons.get(n, "not found") for n in self.out.missing}
        self.out.metadata |= self.describe(recorder)

    def describe(self, recorder: Recorder) -> dict[str, str]:
        config, options = self.model.config, self.options
        dtype = next(
            (p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32
        )
        producer = {
            **environment(self.model),
            "attention_layouts": recorder.layouts,
            "experts_implementation": str(getattr(config, "_experts_implementation", None)),
            "gradient_checkpointing": options.gradient_checkpointing,
            "use_cache": bool(options.chunks)
            or (options.use_cache if options.use_cache is not None else "default"),
        }
        return {
            "format": "dsv32-verify.trace",
            "version": "1",
            "case": case_metadata({**self.case, "chunks": list(options.chunks)}),
            "mode": options.mode,
            "dtype": str(dtype).removeprefix("torch."),
            "rope_layout": "interleaved",
            "forced": "true" if self.forced else "false",
            "attn_implementation": str(getattr(config, "_attn_implementation", None) or "unknown"),
            "mask": options.mask,
            "missing_taps": canonical_json(self.out.missing),
            "derived_taps": canonical_json(sorted(self.out.derived)),
            "producer": canonical_json(producer),
        }


def own_lm_loss(out: Any) -> Tensor | None:
    """The LM loss in a model's output; `loss` of a fork with an `lm_loss` may have more terms."""
    loss = getattr(out, "lm_loss", None)
    loss = getattr(out, "loss", None) if loss is None else loss
    return loss if isinstance(loss, Tensor) else None


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def _set_implementation(
    model: nn.Module, kind: str, value: str, stack: contextlib.ExitStack
) -> None:
    """Sets `_attn_implementation` or `_experts_implementation` for this run, where the model knows
    such a switch."""
    attribute = f"_{kind}_implementation"
    setter = getattr(model, f"set_{kind}_implementation", None)
    old = getattr(model.config, attribute, None)
    if old == value:
        return
    if setter is None and kind == "experts":
        return  # one implementation only
    if setter is None:
        setter = functools.partial(setattr, model.config, attribute)
    setter(value)
    if old is not None:
        stack.callback(setter, old)


def _widen_selection(model: nn.Module, S: int, stack: contextlib.ExitStack) -> None:
    """Dense mode for an implementation without that switch: every visible key is selected."""
    for owner in (model.config, *model.modules()):
        old = getattr(owner, "index_topk", None)
        if isinstance(old, int) and old < S:
            owner.index_topk = S
            stack.callback(setattr, owner, "index_topk", old)


def _raised_at(error: BaseException) -> str:
    """File and line where the implementation raised: the innermost frame outside torch and this
    file."""
    place, trace = "", error.__traceback__
    own = (str(Path(__file__).resolve()), str(Path(torch.__file__).resolve().parent))
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith(own) or not place:
            place = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


# --- training -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Suite:
    """The recipe of a training golden (golden/README.md). AdamW, one group; two with LoRA.

    steps: of the golden of a tiny case, and of any other.
    moves: "all", "rest" (the indexer is frozen), "indexer", or "lora".
    """

    steps: tuple[int, int]
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    batches: str = "cycle4"
    lm: bool = True
    kl: str = ""
    kl_weight: float = 1.0
    moves: str = "all"

    def groups(self) -> list[dict[str, Any]]:
        shared = {"betas": list(self.betas), "eps": 1e-8, "weight_decay": 0.01}
        if self.moves != "lora":
            return [{"name": "all", "lr": self.lr, **shared}]
        return [{"name": name, "lr": lr, **shared} for name, lr in LORA_RATES.items()]

    def recipe(self, steps: int) -> str:
        fields = {key: getattr(self, key) for key in ("batches", "clip", "kl_weight", "lm")}
        fields |= {"accumulation": 1, "world": 1, "steps": steps, "kl": self.kl or "none"}
        return canonical_json(fields | {"groups": self.groups()})


LORA_RANK, LORA_ALPHA = 8, 16
LORA_TARGETS = {
    "lm": "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj gate_proj up_proj down_proj",
    "kl": "wq_b wk weights_proj",
}
LORA_RATES = {"lm": 1e-4, "kl": 1e-3}
SUITES = {
    "loss_descent": Suite((50, 20)),
    "loss_descent_memorised": Suite(
        (50, 20), lr=1e-4, betas=(0.9, 0.999), clip=None, batches="memorised"
    ),
    "sft_frozen_indexer": Suite((20, 20), lr=1e-4, moves="rest"),
    "indexer_kl_warmup": Suite((50, 10), clip=None, lm=False, kl="warmup", moves="indexer"),
    "indexer_kl_sparse": Suite((50, 10), clip=None, lm=False, kl="sparse", moves="indexer"),
    "indexer_kl_joint": Suite((20, 10), clip=None, kl="sparse", kl_weight=0.1),
    "dual_lora": Suite((20, 10), clip=None, kl="sparse", moves="lora"),
}


def train(
    model: nn.Module,
    case: dict[str, Any],
    suite: str,
    *,
    steps: int | None = None,
    **options: Any,
) -> Capture:
    """Trains `model` by the recipe of `suite`, in place.

    Taps: train.loss, train.grad_norm, train.kl [steps], and every parameter after the last step
    (param.*; with LoRA the merged weights).

    steps: default, those of the golden. options: those of `Options`. Throws as `capture` does.
    """
    case = check_case(case, "case")
    mask = "given" if case.get("mask_given", True) else "none"
    return _Training(model, case, suite, steps, Options(mask=mask, **options)).run()


class _Training:
    """One training run: who moves, step by step."""

    def __init__(
        self,
        model: nn.Module,
        case: dict[str, Any],
        suite: str,
        steps: int | None,
        options: Options,
    ) -> None:
        if case["chunks"]:
            got = f"chunks {list(case['chunks'])}"
            raise DumpError(2, "train", "case", "a case of one pass", got)
        self.model, self.case, self.options = model, case, options
        self.name, self.suite = suite, SUITES[suite]
        usual = self.suite.steps[0 if case["config"] == "tiny" else 1]
        self.steps = usual if steps is None else steps
        self.sizes = Sizes.of(model.config)
        self.series: dict[str, list[float]] = {"train.loss": [], "train.grad_norm": []}
        if self.suite.kl:
            self.series["train.kl"] = []
        self.out = Capture()
        self.phase = "setup"

    def run(self) -> Capture:
        first = self.pass_of(0, self.suite.kl)
        self.out.metadata = first.describe(Recorder(self.model, self.sizes, self.options.wanted))
        recipe = self.suite.recipe(self.steps)
        self.out.metadata |= {"mode": "train", "suite": self.name, "recipe": recipe}
        with contextlib.ExitStack() as stack:
            first.settings(stack)
            self.model.train()
            try:
                self.train()
            except DumpError:
                raise
            except Exception as error:  # the model's own code may raise anything
                self.crash(error)
                raise ModelCrash(self.out) from error
            finally:
                self.keep_series()
        self.keep_parameters()
        return self.out

    def pass_of(self, index: int, kl: str = "") -> _Run:
        batch = make_batch(self.case, self.sizes.vocab, index)
        options = dataclasses.replace(self.options, kl=kl, backward=False, taps=())
        return _Run(self.model, self.case, options, batch, None)

    def train(self) -> None:
        wrapped = attach_lora(self.model, self.case["seed"]) if self.suite.moves == "lora" else None
        groups = self.parameters()
        optimizers = [torch.optim.AdamW(groups[o.pop("name")], **o) for o in self.suite.groups()]
        for index in range(self.steps):
            self.phase = f"training step {index}"
            self.step(0 if self.suite.batches == "memorised" else index % 4, groups, optimizers)
        if wrapped is not None:
            wrapped.merge_and_unload(adapter_names=list(LORA_TARGETS))

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """What each optimizer moves, by the name of its group."""
        trained: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            indexer = ".indexer." in name
            if self.suite.moves == "lora":
                if parameter.requires_grad:
                    trained.setdefault("kl" if indexer else "lm", []).append(parameter)
                continue
            moves = {"all": True, "rest": not indexer, "indexer": indexer}[self.suite.moves]
            parameter.requires_grad_(moves and parameter.is_floating_point())
            trained.setdefault("all", []).extend([parameter] if moves else [])
        return trained

    def step(
        self,
        batch: int,
        groups: dict[str, list[nn.Parameter]],
        optimizers: list[torch.optim.Optimizer],
    ) -> None:
        self.model.zero_grad(set_to_none=True)
        with torch.enable_grad() if self.suite.lm else torch.no_grad():
            loss = self.pass_of(batch).lm_loss()
        if loss is None:
            raise DumpError(4, "train", "loss", "a loss from the model", "none")
        if self.suite.lm:
            loss.backward()
        self.series["train.loss"].append(float(loss.detach()))
        if self.suite.kl:
            kl = self.pass_of(batch, self.suite.kl).kl_loss()
            (self.suite.kl_weight * kl).backward()
            self.series["train.kl"].append(float(kl.detach()))
        limit = math.inf if self.suite.clip is None else self.suite.clip
        norms = {name: nn.utils.clip_grad_norm_(group, limit) for name, group in groups.items()}
        told = norms["lm" if self.suite.moves == "lora" else "all"]
        self.series["train.grad_norm"].append(float(told))
        for optimizer in optimizers:
            optimizer.step()

    def keep_series(self) -> None:
        for name, values in self.series.items():
            if values and self.options.wanted(name):
                self.out.taps[name] = torch.tensor(values, dtype=torch.float64)

    def keep_parameters(self) -> None:
        for name, parameter in self.model.named_parameters():
            transposed = is_transposed(self.model, name)
            views = checkpoint_views(name, parameter, self.sizes.hidden, transposed)
            for part, value in views:
                if self.options.wanted(f"param.{part}"):
                    self.out.taps[f"param.{part}"] = keep(value).contiguous()

    def crash(self, error: Exception) -> None:
        self.out.failure = {
            "phase": self.phase,
            "where": self.phase,
            "message": f"{type(error).__name__}: {error}"[:4000],
            "shapes": [],
            "raised_at": _raised_at(error),
        }


def attach_lora(model: nn.Module, seed: int) -> Any:
    """Both adapters of real peft on the model, in place: A of FORMATS section 1, B zero."""
    try:
        import peft
    except ModuleNotFoundError as error:
        hint = "install it in the implementation's environment"
        raise DumpError(6, "--suite dual_lora", "packages", "peft", "none", hint) from error
    wrapped = None
    with plain_lora_targets():
        for name, targets in LORA_TARGETS.items():
            config = peft.LoraConfig(
                r=LORA_RANK,
                lora_alpha=LORA_ALPHA,
                lora_dropout=0.0,
                target_modules=targets.split(),
            )
            if wrapped is None:
                wrapped = peft.get_peft_model(model, config, adapter_name=name)
            else:
                wrapped.add_adapter(name, config)
    wrapped.base_model.set_adapter(list(LORA_TARGETS))
    for name, parameter in model.named_parameters():
        found = re.fullmatch(r"(.*\.lora_A)\.\w+(\.weight)", name)
        if found:
            stream = WRAPPERS.sub("", found.group(1) + found.group(2))
            value = synthetic_start(seed, stream, parameter.shape[-1], parameter.numel(), 0)
            parameter.data.copy_(value.reshape(parameter.shape))
    return wrapped


@contextlib.contextmanager
def plain_lora_targets() -> Iterator[None]:
    """Later peft takes gate_proj, up_proj and down_proj for the experts of an old checkpoint and
    moves such adapters from the dense and shared MLPs to the fused experts: not here."""
    try:
        conversion = importlib.import_module("peft.utils.transformers_weight_conversion")
        patterns = conversion._MODEL_TO_CONVERSION_PATTERN
    except (ImportError, AttributeError):  # an earlier peft
        yield
        return
    kept = patterns.pop("deepseek_v32", None)
    try:
        yield
    finally:
        if kept is not None:
            patterns["deepseek_v32"] = kept


# --- provenance -----------------------------------------------------------------------------------

HADAMARD = "fast_hadamard_transform"
_stand_ins: list[str] = []


def environment(model: nn.Module) -> dict[str, Any]:
    """Library versions, where transformers really came from, and the hash of the model's source
    file."""
    parts = find_parts(model)
    attention = next((n for n, p in parts.items() if p.role == "attention"), "")
    file = source_file(type(model.get_submodule(attention)))
    source = file.read_bytes() if file.is_file() else b""
    out: dict[str, Any] = {
        "tool": "golden/dump.py",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
        "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
        "modeling_file": str(file),
        "modeling_sha256": hashlib.sha256(source).hexdigest(),
        "device": _device(model),
        "threads": torch.get_num_threads(),
        "hadamard": _hadamard(source),
        "config_adjusted": getattr(model, "dsv32_config_adjusted", {}),
    }
    transformers = sys.modules.get("transformers")
    if transformers is not None and getattr(transformers, "__file__", None):
        package = Path(transformers.__file__).resolve().parent
        out["transformers"] = str(transformers.__version__)
        out["transformers_path"] = str(package)
        out["transformers_commit"] = git_commit(package) or "none"
    return out


def source_file(cls: type) -> Path:
    try:
        return Path(inspect.getfile(cls))
    except (OSError, TypeError):  # a class made in a notebook or a console
        return Path("unknown")


def _device(model: nn.Module) -> str:
    devices = sorted({str(p.device) for p in model.parameters()})
    names = [torch.cuda.get_device_name(d) for d in devices if d.startswith("cuda")]
    return ", ".join(devices + names)


def _hadamard(source: bytes) -> str:
    """Which Hadamard transform ran: the package, our stand-in for it, code of the fork's own, or
    none."""
    if HADAMARD in _stand_ins:
        return "stand-in"
    if HADAMARD in sys.modules:
        return "package"
    return "own code" if b"hadamard" in source.lower() and b"def " in source else "none"


def git_commit(path: Path) -> str | None:
    """The commit checked out above `path`, read from .git without running git."""
    for folder in (path, *path.parents):
        git = folder / ".git"
        if git.is_file():
            text = git.read_text().strip()
            git = (folder / text.removeprefix("gitdir:").strip()).resolve()
        if (git / "HEAD").is_file():
            return _resolve_head(git)
    return None


def _resolve_head(git: Path) -> str | None:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head
    ref = head.removeprefix("ref:").strip()
    common = git / "commondir"
    roots = [git] + ([(git / common.read_text().strip()).resolve()] if common.is_file() else [])
    for root in roots:
        if (root / ref).is_file():
            return (root / ref).read_text().strip()
        packed = root / "packed-refs"
        for line in packed.read_text().splitlines() if packed.is_file() else ():
            if line.endswith(" " + ref):
                return line.split(" ")[0]
    return None


def hadamard_transform(x: Tensor, scale: float = 1.0) -> Tensor:
    """Sylvester-Hadamard transform of the last axis in plain torch; a length that is no power of
    two is padded."""
    width = x.shape[-1]
    size = 1 << max(0, width - 1).bit_length()
    out = torch.nn.functional.pad(
        x.to(torch.promote_types(x.dtype, torch.float32)), (0, size - width)
    )
    step = 1
    while step < size:
        pairs = out.reshape(*x.shape[:-1], size // (2 * step), 2, step)
        out = torch.stack(
            (pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]), dim=-2
        )
        out = out.reshape(*x.shape[:-1], size)
        step *= 2
    return (out[..., :width] * scale).to(x.dtype)


def install_stand_in() -> None:
    """A plain torch module in the place of the CUDA-only Hadamard package."""
    module = types.ModuleType(HADAMARD)
    module.hadamard_transform = hadamard_transform  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec(HADAMARD, loader=None)
    sys.modules[HADAMARD] = module
    _stand_ins.append(HADAMARD)
    say(
        f"{HADAMARD} is not installed and the model has no fallback: "
        "a plain torch stand-in takes its place"
    )


def lacks_hadamard(error: BaseException | None) -> bool:
    """Whether an exception (or one that it came from) is about the absent Hadamard package."""
    while error is not None:
        if HADAMARD in str(error) and HADAMARD not in sys.modules:
            return True
        error = error.__cause__ or error.__context__
    return False


def with_stand_in(step: Callable[[], Any]) -> Any:
    """Runs a step as it is; once more with the stand-in when it failed for want of the CUDA-only
    package."""
    try:
        return step()
    except Exception as error:  # a lazy import wraps its cause in any type
        if not lacks_hadamard(error):
            raise
    install_stand_in()
    return step()


def missing_package(error: BaseException | None) -> str | None:
    """The absent package that an import failed for: the environment's fault, not the model's."""
    while error is not None:
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0]
        if absent and absent != "transformers":
            return absent
        if isinstance(error, importlib.metadata.PackageNotFoundError):
            return str(error).partition(" distribution")[0]
        asked = re.search(r"pip install ['\"`]?([\w-]+)", str(error))
        if asked:
            return asked.group(1)
        error = error.__cause__ or error.__context__
    return None


def refuse_missing_package(error: BaseException) -> None:
    package = missing_package(error)
    if package is not None:
        where = "the implementation's environment"
        raise DumpError(
            6, where, "packages", package, "none", "install it and run again"
        ) from error


def say(text: str) -> None:
    print(f"dump: {text}", file=sys.stderr, flush=True)


# --- writing --------------------------------------------------------------------------------------


def write_trace(out: Path, taps: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Whole or not at all: a part file is renamed at the end."""
    part = out.with_name(out.name + ".part")
    taps = {name: value.detach().cpu().contiguous().clone() for name, value in taps.items()}
    try:
        part.touch()
        mode = part.stat().st_mode  # save_file makes a private file of its own
        save_file(taps, str(part), metadata=metadata)
        part.chmod(mode)
        os.replace(part, out)
    except (OSError, safetensors.SafetensorError) as error:
        raise DumpError(6, str(out), "output", "a writable file", str(error)) from error
    finally:
        part.unlink(missing_ok=True)


def dump(
    model: nn.Module,
    case: dict[str, Any],
    out: str | Path,
    *,
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    extra: dict[str, str] | None = None,
    suite: str | None = None,
    **options: Any,
) -> Capture:
    """Captures a live model and writes its trace file. `options` are those of `capture`; with
    `suite` the model is trained, and they are those of `train`.

    checkpoint: the directory that the model was loaded from; its weights are compared with it bit
    for bit.
    weights: what the metadata says of the weights; default: `synthetic:SEED` when they are, else a
    digest.
    A crash of the model is written as a trace with `failure` and then returned, not raised.
    """
    case = check_case(case, "case")
    if checkpoint is not None:
        files = Checkpoint(Path(checkpoint))
        loaded = compare_weights(model, files)
        identity = {
            "weights": weights or weights_identity(files.tensors, case),
            "weights_loaded": canonical_json(loaded),
        }
        report_weights(loaded)
    else:
        own = loaded_tensors(model, Sizes.of(model.config).hidden)
        identity = {"weights": weights or weights_identity(lambda: iter(own.items()), case)}
    try:
        work = functools.partial(train, suite=suite) if suite else capture
        run = with_stand_in(lambda: work(model, case, **options))
    except ModelCrash as crash:
        refuse_missing_package(crash)
        run = crash.capture
    run.metadata |= identity | (extra or {})
    if run.failure:
        run.metadata["failure"] = canonical_json(run.failure)
    write_trace(Path(out), run.taps, run.metadata)
    return run


def report_weights(loaded: dict[str, Any]) -> None:
    for kind in ("different", "missing", "unexpected"):
        names = loaded[kind]
        if names:
            shown = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
            say(f"weights {kind}: {len(names)}: {shown}")


def report_run(run: Capture, out: Path) -> None:
    for name in run.missing if not run.failure else ():
        say(f"tap {name}: {run.reasons.get(name, 'not found')}")
    if run.failure:
        failure = run.failure
        say(f"the model crashed: {failure['where']}: {failure['phase']}: {failure['message']}")
        say(f"inputs of that module: {failure['shapes']}; raised at {failure['raised_at']}")
    backend = run.metadata["attn_implementation"]
    say(f"{out}: {len(run.taps)} taps, {len(run.missing)} missing, {backend} attention")


# --- command --------------------------------------------------------------------------------------


def import_transformers(path: Path | None) -> types.ModuleType:
    """transformers from the environment, or from the source tree or package folder `path` and
    nowhere else."""
    if path is None:
        try:
            return importlib.import_module("transformers")
        except ModuleNotFoundError as error:
            if error.name != "transformers":
                raise
            raise DumpError(
                6,
                "transformers",
                "import",
                "an installed package",
                "none",
                "or --transformers PATH",
            ) from error
    root = path.resolve()
    places = [
        p
        for p in (root / "src", root, root.parent)
        if (p / "transformers" / "__init__.py").is_file()
    ]
    if root.name == "transformers" and (root / "__init__.py").is_file():
        places = [root.parent]
    if not places:
        raise DumpError(
            4,
            "--transformers",
            str(path),
            "a source tree or a transformers package folder",
            "neither",
        )
    sys.path.insert(0, str(places[0]))
    module = importlib.import_module("transformers")
    got = Path(str(module.__file__)).resolve()
    if root not in got.parents:
        hint = (
            "another one was imported first: use an environment without it, or without PYTHONPATH"
        )
        raise DumpError(
            4, "--transformers", "imported package", f"one under {root}", str(got.parent), hint
        )
    return module


def find_class(transformers: types.ModuleType, name: str) -> Any:
    """A class by name (of transformers) or as module.Class."""
    module, _, leaf = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module) if module else transformers, leaf)
    except (ImportError, AttributeError) as error:
        raise DumpError(
            2, "--class", name, "a class of transformers, or module.Class", str(error)
        ) from error


def load_model(transformers: types.ModuleType, arguments: argparse.Namespace) -> nn.Module:
    """The model as its users load it: from_pretrained on the checkpoint directory."""
    version = tuple(int(part) for part in re.findall(r"\d+", transformers.__version__)[:2])
    options: dict[str, Any] = {
        "dtype" if version >= (4, 56) else "torch_dtype": DTYPES[arguments.dtype]
    }
    if arguments.attn != "default":
        options["attn_implementation"] = arguments.attn
    if arguments.device_map:
        options["device_map"] = arguments.device_map
    if arguments.trust_remote_code:
        options["trust_remote_code"] = True
    cls = find_class(transformers, arguments.cls)
    config, adjusted = expert_count(transformers, arguments)
    model = cls.from_pretrained(
        str(arguments.checkpoint), **options, **({"config": config} if adjusted else {})
    )
    model.dsv32_config_adjusted = adjusted
    return model


def expert_count(
    transformers: types.ModuleType, arguments: argparse.Namespace
) -> tuple[Any, dict[str, int]]:
    """transformers 5.12 sizes its experts by `num_experts`, which a released config.json does not
    have: its default of 256
    contradicts a smaller `n_routed_experts`. Such a field follows the checkpoint here, and the
    trace says so."""
    remote = {"trust_remote_code": True} if arguments.trust_remote_code else {}
    config = transformers.AutoConfig.from_pretrained(str(arguments.checkpoint), **remote)
    adjusted = {}
    for field in ("num_experts", "num_local_experts"):
        value, want = getattr(config, field, None), getattr(config, "n_routed_experts", None)
        if isinstance(value, int) and isinstance(want, int) and value != want:
            setattr(config, field, want)
            adjusted[field] = want
    if adjusted:
        say(
            f"config: {canonical_json(adjusted)} set from n_routed_experts: "
            "this release's own default differs"
        )
    return config, adjusted


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dump.py",
        description="Runs a DeepSeek-V3.2 implementation and writes its trace for dsv32-verify.",
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        required=True,
        help="directory: config.json, safetensors (dsv32-verify weights make)",
    )
    add("--out", type=Path, required=True, help="trace file to write (safetensors)")
    add("--case", help=f"name or JSON; default: {CASE_FILE} in the checkpoint")
    add("--batch", type=Path, help="own data: safetensors with input_ids, attention_mask, labels")
    modes = ("forward", "backward", *(f"kl-{stage}" for stage in KL_STAGES), "train")
    add("--mode", choices=modes, default="forward")
    add("--suite", choices=tuple(SUITES), help="mode train: whose recipe")
    add("--steps", type=int, help="mode train; default: as many as the suite's golden has")
    add(
        "--transformers",
        type=Path,
        metavar="PATH",
        help="source tree; refused if another one is imported",
    )
    add(
        "--class",
        dest="cls",
        default="AutoModelForCausalLM",
        metavar="NAME",
        help="class to load with, or module.Class",
    )
    add("--device-map", help="as from_pretrained takes it; needs accelerate")
    add("--dtype", choices=tuple(DTYPES), default="float32")
    add(
        "--attn",
        default="default",
        help="attention backend: default (what users get), eager, sdpa, ...",
    )
    add("--experts", default="default", help="experts backend: default, eager, ...")
    add("--mask", choices=("given", "none"), help="default: what the case says")
    add("--gradient-checkpointing", action="store_true")
    add("--no-cache", action="store_true", help="use_cache=False")
    add(
        "--taps",
        default="*",
        help="comma-separated patterns of taps to keep, such as logits,loss.lm,topk",
    )
    add(
        "--no-training-outputs",
        action="store_true",
        help="do not ask for index scores and KL targets",
    )
    add(
        "--trust-remote-code",
        action="store_true",
        help="for a model whose code lies in the checkpoint",
    )
    return parser.parse_args(words)


def failed_before_run(
    arguments: argparse.Namespace, case: dict[str, Any], phase: str, error: Exception
) -> Capture:
    """The account of an implementation that could not even be imported or loaded."""
    run = Capture()
    run.failure = {
        "phase": phase,
        "where": phase,
        "message": f"{type(error).__name__}: {error}"[:4000],
        "shapes": [],
        "raised_at": _raised_at(error),
    }
    transformers = sys.modules.get("transformers")
    producer = {
        "tool": "golden/dump.py",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": str(getattr(transformers, "__version__", "unknown")),
        "transformers_path": str(getattr(transformers, "__file__", arguments.transformers)),
    }
    run.metadata = {
        "format": "dsv32-verify.trace",
        "version": "1",
        "case": case_metadata(case),
        "mode": arguments.mode,
        "dtype": arguments.dtype,
        "rope_layout": "interleaved",
        "forced": "false",
        "attn_implementation": arguments.attn,
        "mask": arguments.mask or ("given" if case.get("mask_given", True) else "none"),
        "missing_taps": "[]",
        "derived_taps": "[]",
        "producer": canonical_json(producer),
        "weights": weights_identity(Checkpoint(arguments.checkpoint).tensors, case),
        "failure": canonical_json(run.failure),
    }
    return run


def check_output(out: Path) -> None:
    """Before the long run: can the file be written at all?"""
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise DumpError(
            6, str(out), "output", "a file in a writable folder", "a folder or no such place"
        )


def run_options(
    arguments: argparse.Namespace, case: dict[str, Any], batch: dict[str, np.ndarray] | None
) -> dict[str, Any]:
    both = {
        "attn_implementation": None if arguments.attn == "default" else arguments.attn,
        "experts_implementation": None if arguments.experts == "default" else arguments.experts,
        "use_cache": False if arguments.no_cache else None,
        "gradient_checkpointing": arguments.gradient_checkpointing,
        "taps": tuple(arguments.taps.split(",")),
        "training_outputs": not arguments.no_training_outputs,
    }
    if arguments.mode == "train":
        return both | {"suite": arguments.suite, "steps": arguments.steps}
    own = {"backward": arguments.mode == "backward", "kl": arguments.mode.partition("kl-")[2]}
    return both | own | {"mask": arguments.mask, "batch": batch}


def check_training(arguments: argparse.Namespace) -> None:
    """Words that go with mode train, and only with it."""
    training = arguments.mode == "train"
    if training != (arguments.suite is not None):
        want = "one of " + ", ".join(SUITES) if training else "mode train"
        raise DumpError(2, "--suite", f"mode {arguments.mode}", want, str(arguments.suite))
    if arguments.steps is not None and (not training or arguments.steps < 1):
        got = f"{arguments.steps} in mode {arguments.mode}"
        raise DumpError(2, "--steps", "steps", "at least 1, in mode train", got)
    if training and (arguments.batch or arguments.mask):
        raise DumpError(2, "--mode", "train", "the batches of the case", "--batch or --mask")


def run_command(arguments: argparse.Namespace) -> int:
    check_training(arguments)
    check_output(arguments.out)
    config = read_config(arguments.checkpoint)
    case = find_case(arguments.case, arguments.checkpoint)
    if arguments.mode != "forward" and case["chunks"]:
        got = f"chunks {case['chunks']}"
        raise DumpError(2, "--mode", arguments.mode, "a case of one pass", got)
    check_overrides(case, config, arguments.checkpoint)
    batch = None
    if arguments.batch:
        batch = read_batch(arguments.batch, case, config["vocab_size"])
        case = {**case, "batch": hashlib.sha256(arguments.batch.read_bytes()).hexdigest()}
    phase = "import"
    try:
        transformers = with_stand_in(lambda: import_transformers(arguments.transformers))
        phase = "load"
        model = with_stand_in(lambda: load_model(transformers, arguments))
    except DumpError:
        raise
    except Exception as error:  # whatever the fork raises is its verdict
        refuse_missing_package(error)
        run = failed_before_run(arguments, case, phase, error)
        write_trace(arguments.out, {}, run.metadata)
    else:
        options = run_options(arguments, case, batch)
        run = dump(model, case, arguments.out, checkpoint=arguments.checkpoint, **options)
    report_run(run, arguments.out)
    return 1 if run.failure else 0


def read_config(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "config.json"
    if not path.is_file():
        raise DumpError(4, str(checkpoint), "checkpoint", "a folder with config.json", "none")
    config = _json_object(path.read_text(), str(path))
    if not isinstance(config.get("vocab_size"), int):
        raise DumpError(4, str(path), "vocab_size", "an integer", repr(config.get("vocab_size")))
    return config


def check_overrides(case: dict[str, Any], config: dict[str, Any], checkpoint: Path) -> None:
    """A case's overrides must be in the checkpoint's config."""
    for key, want in case["overrides"].items():
        if key in config and config[key] != want and key != "use_sparse_attention":
            got = canonical_json(config[key])
            raise DumpError(
                4,
                str(checkpoint / "config.json"),
                key,
                canonical_json(want),
                got,
                "make the case's checkpoint",
            )


def main(words: list[str] | None = None) -> int:
    arguments = parse_arguments(words)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run_command(arguments)
    except DumpError as error:
        say(str(error))
        return error.code
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except Exception as error:
        say(f"internal error: {type(error).__name__}: {error} at {_raised_at(error)}")
        return 3

