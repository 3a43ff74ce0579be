"""The trace kit: what a program that is not transformers needs to be judged by dsv32-verify.

One file, numpy alone; copy it to wherever the engine is. It gives the case (tokens, mask,
positions, labels, weights by checkpoint name), takes the engine's tensors in the layout that they
have, says in the judge's words what is wrong with them, and writes the trace file:

    import dsv32_trace as kit
    case = kit.open_case("ckpt/")              # a folder of `weights make`, a listed name, or JSON
    w = case.weight("model.norm.weight")       # float32; the same bits as the checkpoint
    trace = kit.Trace(case, mode="forward", engine="mine 1.0")
    trace.put("logits", my_model(case.input_ids, case.position_ids, case.attention_mask))
    trace.put("layers.0.q_rope", q, axes="b h s d", lanes="deinterleaved")
    trace.write("mine.safetensors")            # then: dsv32-verify --candidate mine.safetensors

docs/trace-kit.md tells it with examples. The rest of golden/dump stands on this file: cases,
batches and synthetic weights are made here and nowhere else in Python.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

CASE_KEYS = ("config", "overrides", "seed", "B", "S", "pad", "bias_offset", "chunks")
# Optional keys and what holds without them.
EXTRA_KEYS: dict[str, Any] = {
    "edits": [],
    "pad_side": "left",
    "position_offset": 0,
    "config_style": 4,
    "weights": "synthetic",
}
EDIT_KEYS = ("name", "row", "column", "scale", "add")
# The weights depend on them.
WEIGHT_KEYS = ("config", "overrides", "seed", "bias_offset", "edits", "weights")
CASE_FILE = "dsv32_case.json"
MODES = ("forward", "backward", "kl-warmup", "kl-sparse", "train", "ops", "generate")
DTYPES = ("float64", "float32", "bfloat16", "float16", "fp8")
STORED = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32"}


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


# The case: which tokens and weights a run is about.


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
    """The shortest text that reads back as the same double, in the layout of ECMAScript."""
    if not math.isfinite(value):
        raise ValueError(f"not a JSON number: {value}")
    if value == 0:
        return "0"
    sign, text = ("-" if value < 0 else ""), repr(abs(value))
    mantissa, _, exponent = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    # Where the decimal point stands, counted from the first digit of `digits`.
    point = len(whole) + int(exponent or 0)
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
    """The case with its defaults filled in.

    Throws DumpError on a missing key, a wrong type or an impossible value.
    """
    case = {"overrides": {}, "seed": 1, "pad": 0, "bias_offset": 0, "chunks": [], **case}
    case = {**EXTRA_KEYS, **case}
    if "mask" in case:
        case["mask_given"] = case.pop("mask") != "none"
    for key in CASE_KEYS:
        if key not in case:
            hint = "keys: " + " ".join(CASE_KEYS)
            raise DumpError(4, where, f"case.{key}", "a value", "a missing key", hint)
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
        want, got = f"lengths that sum to S = {case['S']}", f"a sum of {sum(chunks)}"
        raise DumpError(4, where, "case.chunks", want, got)
    _check_extras(case, where)
    return case


def _check_extras(case: dict[str, Any], where: str) -> None:
    """The optional keys. Whether an edit fits the model is seen when its weight is made."""
    edits = case["edits"]
    if not isinstance(edits, (list, tuple)):
        raise DumpError(4, where, "case.edits", "a list", repr(edits))
    for edit in edits:
        known = isinstance(edit, dict) and isinstance(edit.get("name"), str)
        if not known or set(edit) - set(EDIT_KEYS) or ("row" in edit) == ("column" in edit):
            want = "name, row or column, scale, add"
            raise DumpError(4, where, "case.edits", want, repr(edit))
    if case["pad_side"] not in ("left", "right"):
        raise DumpError(4, where, "case.pad_side", "left or right", repr(case["pad_side"]))
    if not isinstance(case["position_offset"], int) or case["position_offset"] < 0:
        got = repr(case["position_offset"])
        raise DumpError(4, where, "case.position_offset", "an integer >= 0", got)
    if case["config_style"] not in (4, 5):
        raise DumpError(4, where, "case.config_style", "4 or 5", repr(case["config_style"]))
    if case["weights"] not in ("synthetic", "synthetic-fp8"):
        want = "synthetic or synthetic-fp8"
        raise DumpError(4, where, "case.weights", want, repr(case["weights"]))


def plain_case(case: dict[str, Any]) -> dict[str, Any]:
    """The keys that a case is told by: the required ones, and the others where they say more."""
    extras = {key: case[key] for key, usual in EXTRA_KEYS.items() if case.get(key, usual) != usual}
    return {key: case[key] for key in (*CASE_KEYS, "batch") if key in case} | extras


def case_metadata(case: dict[str, Any]) -> str:
    """The name of a listed case, else the whole case as canonical JSON."""
    plain = plain_case(case)
    name = case.get("name")
    listed = listed_cases().get(name) if isinstance(name, str) else None
    if listed and plain == plain_case(listed):
        return str(name)
    return canonical_json(plain)


def configs_folder() -> Path | None:
    """configs/ of the checkout that this file stands in; None when the file was copied."""
    folder = Path(__file__).resolve().parent.parent.parent / "configs"
    return folder if (folder / "cases.json").is_file() else None


@functools.lru_cache(maxsize=1)
def listed_cases() -> dict[str, dict[str, Any]]:
    """The entries of cases.json by name; none where only this file was copied."""
    text = _carried_cases()
    entries = json.loads(text)["cases"] if text else []
    return {entry["name"]: entry for entry in entries}


def _carried_cases() -> str | None:
    loader = globals().get("__loader__")
    if hasattr(loader, "archive"):  # the zipped tool carries a copy of the list
        return loader.get_data(f"{loader.archive}/dsv32_dump/cases.json").decode()
    installed = Path(__file__).resolve().parent / "dsv32_dump" / "cases.json"  # by the wheel
    if installed.is_file():
        return installed.read_text()
    folder = configs_folder()
    return (folder / "cases.json").read_text() if folder else None


# Random streams, weights, batches. Every number comes from the counter-based generator Philox, so
# that Python, C++ and CUDA make the same bits in any order.


def fnv1a64(text: str) -> int:
    """The 64-bit FNV-1a hash of a name: the second half of a stream's key."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def philox_lanes(seed: int, name: str, count: int, lane: str) -> np.ndarray:
    """`count` lanes (numpy dtype `lane`) of the random stream `name`, little-endian.

    numpy increments the counter before it makes a block, so a stream starts at block 1.
    """
    per_word = 8 // np.dtype(lane).itemsize
    stream = np.random.Philox(key=np.array([seed, fnv1a64(name)], dtype=np.uint64))
    return stream.random_raw(-(-count // per_word)).astype("<u8", copy=False).view(lane)[:count]


# First suffix that matches: (kind, g). "abs": bell * 2^g; "one": 1 + bell * 2^g; "fan": bell *
# 2^(g - k), where k grows with the length of the last axis (fan_shift).
WEIGHT_RULES: tuple[tuple[str, str, int], ...] = (
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
    ("lora_A.weight", "fan", 0),
    ("lora_B.weight", "abs", -10),
    ("", "fan", 0),
)


def bell(seed: int, name: str, count: int) -> np.ndarray:
    """`count` integers in [-30, 30], int16: the four nibbles of each lane summed, minus 30."""
    lanes = philox_lanes(seed, name, count, "<u2")
    pairs = (lanes & 0x0F0F) + ((lanes >> 4) & 0x0F0F)
    return ((pairs & 0xFF) + (pairs >> 8)).astype(np.int16) - 30


def fan_shift(last: int) -> int:
    """Smallest k with 4^k >= 85 * last.

    85 is the variance of bell, so a row of bell * 2^-k has a squared norm of at most about 1.
    """
    return next(k for k in range(64) if 4**k >= 85 * last)


def synthetic_values(
    seed: int, name: str, last: int, count: int, bias_offset: float = 0
) -> np.ndarray:
    """The first `count` values, float32, of the tensor `name` whose last axis has length `last`.

    Every value is exact in bfloat16, and its scale keeps the activations of any size in range.
    bias_offset: added to the routers' correction biases, to unbalance the experts of a case.
    """
    _, kind, g = next(rule for rule in WEIGHT_RULES if name.endswith(rule[0]))
    exponent = g - fan_shift(last) if kind == "fan" else g
    value = bell(seed, name, count).astype(np.float32) * np.float32(2.0**exponent)
    if kind == "one":
        value += 1
    if name.endswith("e_score_correction_bias"):
        value += np.float32(bias_offset)
    return value


def case_values(case: dict[str, Any], name: str, shape: tuple[int, ...], count: int) -> np.ndarray:
    """The first `count` values, float32, of a weight of the case, its edits done.

    `shape` is the whole weight's. Throws DumpError where a result is not exact in bfloat16. Of FP8
    weights these are the dequantised values.
    """
    if case.get("weights") == "synthetic-fp8" and is_fp8_weight(name):
        return _fp8_values(case, name, shape, count)
    return _plain_values(case, name, shape, count)


def weights_name(case: dict[str, Any]) -> str:
    """What metadata `weights` says of the case's own weights."""
    return f"{case.get('weights', 'synthetic')}:{case['seed']}"


FP8_WEIGHTS = (
    "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "indexer.wq_b",
    "indexer.wk", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip
LARGEST_E4M3 = 448.0
RELEASED_FP8 = {"weight_block_size": [128, 128], "scale_fmt": "ue8m0"}


def is_fp8_weight(name: str) -> bool:
    """Whether FP8 checkpoints quantise this weight."""
    return name.endswith(tuple(f".{module}.weight" for module in FP8_WEIGHTS))


def fp8_format(case: dict[str, Any]) -> tuple[int, int, bool]:
    """Rows and columns of a block of the case's FP8 weights; whether scales are powers of two."""
    config = case["config"] if isinstance(case["config"], dict) else {}
    config = {"quantization_config": RELEASED_FP8, **config, **case.get("overrides", {})}
    said = config["quantization_config"]
    rows, columns = said.get("weight_block_size", RELEASED_FP8["weight_block_size"])
    return rows, columns, bool(said.get("scale_fmt"))


def nearest_e4m3(values: np.ndarray) -> np.ndarray:
    """Each float32 value rounded to e4m3, ties to even; beyond 448 it is 448."""
    size = np.minimum(np.abs(values), np.float32(LARGEST_E4M3))
    exponent = np.maximum(np.frexp(size)[1] - 1, -6)
    step = np.ldexp(np.float32(1), exponent - 3)
    rounded = np.minimum(np.rint(size / step) * step, np.float32(LARGEST_E4M3))
    return np.copysign(rounded, values).astype(np.float32)


def quantized_and_back(
    values: np.ndarray, block_rows: int, block_columns: int, powers: bool
) -> np.ndarray:
    """float32 [rows, columns] through e4m3 codes with a scale per block, and back."""
    out = np.empty_like(values)
    for first in range(0, values.shape[0], block_rows):
        for begin in range(0, values.shape[1], block_columns):
            at = np.s_[first : first + block_rows, begin : begin + block_columns]
            highest = np.abs(values[at]).max()
            scale = highest / np.float32(LARGEST_E4M3) if highest else np.float32(1)
            if powers:
                mantissa, exponent = np.frexp(scale)
                scale = np.ldexp(np.float32(1), exponent - int(mantissa == 0.5))
            out[at] = nearest_e4m3(values[at] / scale) * scale
    return out


def _fp8_values(case: dict[str, Any], name: str, shape: tuple[int, ...], count: int) -> np.ndarray:
    """The value of each block times 2^(((3 r + 2 c) mod 5) - 3), quantised and restored."""
    rows, columns, powers = fp8_format(case)
    needed = min(-(-count // (rows * shape[1])) * rows, shape[0])  # whole rows of blocks
    values = _plain_values(case, name, shape, needed * shape[1]).reshape(needed, shape[1])
    r, c = np.arange(needed)[:, None] // rows, np.arange(shape[1])[None, :] // columns
    spread = np.ldexp(np.float32(1), (3 * r + 2 * c) % 5 - 3)
    return quantized_and_back(values * spread, rows, columns, powers).reshape(-1)[:count]


def _plain_values(
    case: dict[str, Any], name: str, shape: tuple[int, ...], count: int
) -> np.ndarray:
    values = synthetic_values(case["seed"], name, shape[-1], count, case["bias_offset"])
    for edit in case.get("edits", ()):
        pattern = "[0-9]+".join(map(re.escape, edit["name"].split("*")))
        if re.fullmatch(pattern, name):
            _apply(edit, name, values, shape)
    return values


def _apply(edit: dict[str, Any], name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    """value * scale + add on one index of the first or of the last axis, in place."""
    axis = "row" if "row" in edit else "column"
    index, size = edit[axis], shape[0 if axis == "row" else -1]
    if not 0 <= index < size:
        raise DumpError(4, name, f"case.edits: {axis}", f"0..{size - 1}", str(index))
    inner = int(np.prod(shape[1:]))
    part = slice(index * inner, (index + 1) * inner) if axis == "row" else slice(index, None, size)
    exact = values[part].astype(np.float64) * edit.get("scale", 1) + edit.get("add", 0)
    done = exact.astype(np.float32)
    if not np.array_equal(done, exact) or (done.view(np.uint32) & 0xFFFF).any():
        raise DumpError(4, name, "case.edits", "values that are exact in bfloat16", repr(edit))
    values[part] = done


def weight_specs(config: dict) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor of the unfused checkpoint, in paper order."""
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


def make_batch(case: dict[str, Any], vocab: int, index: int = 0) -> dict[str, np.ndarray]:
    """input_ids, attention_mask, position_ids, labels of batch `index`: [B,S] int64."""
    B, S = case["B"], case["S"]
    lanes = philox_lanes(case["seed"], f"batch.{index}.input_ids", B * S, "<u4").astype(np.uint64)
    ids = ((lanes * np.uint64(vocab)) >> np.uint64(32)).astype(np.int64).reshape(B, S)
    mask = np.ones((B, S), dtype=np.int64)
    right = case.get("pad_side") == "right"
    mask[B - 1, S - case["pad"] if right else 0 : S if right else case["pad"]] = 0
    offset = case.get("position_offset", 0)
    return complete_batch({"input_ids": ids, "attention_mask": mask}, offset)


def complete_batch(batch: dict[str, np.ndarray], offset: int = 0) -> dict[str, np.ndarray]:
    """The batch with position_ids, and with attention_mask and labels where they are absent.

    offset: added to every position.

    A label counts where its token is attended, follows another one of its row and lies beyond the
    first quarter.
    """
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
            batch.get("position_ids", np.maximum(counted - 1, 0) + offset), dtype=np.int64
        ),
        "labels": np.asarray(batch.get("labels", labels), dtype=np.int64),
    }


@dataclasses.dataclass(frozen=True)
class CaseData:
    """One case with all that an engine is given: config, tokens, weights.

    fields: an entry of cases.json; config: config.json with the overrides applied.
    """

    fields: dict[str, Any]
    config: dict[str, Any]

    @functools.cached_property
    def batch(self) -> dict[str, np.ndarray]:
        """input_ids, attention_mask, position_ids, labels: [B,S] int64 each."""
        return make_batch(self.fields, self.config["vocab_size"])

    @property
    def input_ids(self) -> np.ndarray:
        return self.batch["input_ids"]

    @property
    def position_ids(self) -> np.ndarray:
        return self.batch["position_ids"]

    @property
    def labels(self) -> np.ndarray:
        """The token at each place, -100 where it is not counted: loss.lm is over labels[:, 1:]."""
        return self.batch["labels"]

    @property
    def attention_mask(self) -> np.ndarray | None:
        """[B,S], 0 at padding; None in a case that passes no mask at all."""
        return self.batch["attention_mask"] if self.fields.get("mask_given", True) else None

    @functools.cached_property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return weight_specs(self.config)

    def weight(self, name: str) -> np.ndarray:
        """One tensor of the unfused checkpoint, float32. Throws DumpError on an unknown name."""
        if name not in self.weight_shapes:
            raise DumpError(4, self.name, "weight", "a checkpoint name of this case", repr(name))
        shape = self.weight_shapes[name]
        return case_values(self.fields, name, shape, math.prod(shape)).reshape(shape)

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor of the unfused checkpoint with its name, in paper order."""
        return ((name, self.weight(name)) for name in self.weight_shapes)

    @property
    def name(self) -> str:
        return str(self.fields.get("name") or case_metadata(self.fields))


def open_case(what: str | Path | dict[str, Any], configs: str | Path | None = None) -> CaseData:
    """A checkpoint folder of `weights make`, the name of a listed case, or a case as JSON or dict.

    configs: configs/ of this project, where the file was copied from it; a folder needs none.
    Throws DumpError when there is no such case.
    """
    if isinstance(what, (str, Path)) and Path(what).is_dir():
        return _case_of_folder(Path(what))
    folder = Path(configs) if configs else configs_folder()
    hint = "give the checkpoint folder of `dsv32-verify weights make`, or configs="
    if folder is None:
        raise DumpError(2, str(what), "case", "a checkpoint folder, or configs=", "neither", hint)
    listed = {c["name"]: c for c in json.loads((folder / "cases.json").read_text())["cases"]}
    if isinstance(what, str) and what.lstrip().startswith("{"):
        what = json.loads(what)
    if not isinstance(what, dict) and str(what) not in listed:
        raise DumpError(2, "case", "unknown case", "one of " + ", ".join(listed), repr(what))
    case = check_case(what if isinstance(what, dict) else listed[str(what)], "case")
    config = case["config"]
    if not isinstance(config, dict):
        config = json.loads((folder / config / "config.json").read_text())
    return CaseData(case, {**config, **case["overrides"]})


def _case_of_folder(folder: Path) -> CaseData:
    for file in (folder / "config.json", folder / CASE_FILE):
        if not file.is_file():
            hint = "make it: dsv32-verify weights make --case NAME --out DIR"
            want = f"a folder with {file.name}"
            raise DumpError(4, str(folder), "checkpoint", want, "none", hint)
    config, case = (json.loads((folder / n).read_text()) for n in ("config.json", CASE_FILE))
    return CaseData(check_case(case, str(folder / CASE_FILE)), released_config(config))


def released_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json in the released style, whichever style it has."""
    config = dict(config)
    rope, layers = config.pop("rope_parameters", None), config.pop("mlp_layer_types", None)
    if rope:
        config["rope_theta"] = rope["rope_theta"]
        scaling = {key: v for key, v in rope.items() if key not in ("rope_type", "rope_theta")}
        if rope["rope_type"] != "default":
            config["rope_scaling"] = {"type": rope["rope_type"], **scaling}
    if layers:
        config["first_k_dense_replace"] = layers.count("dense")
    return config


# Taps: names, axes, shapes.

# The axes of each tap in the order of the format: b rows, s query tokens, t keys, h heads (those of
# the indexer in ix.*), d values, k picks.
LAYER_AXES = {
    "attn_norm": "b s d", "q_latent": "b s d", "kv_latent": "b s d", "q_nope": "b s h d",
    "q_rope": "b s h d", "k_rope": "b s d", "ix.q": "b s h d", "ix.k": "b t d",
    "ix.weights": "b s h", "ix.scores": "b s t", "topk": "b s k", "attn.logits": "b h s t",
    "attn.probs": "b h s t", "attn.ctx": "b s h d", "attn.out": "b s d", "ffn_norm": "b s d",
    "router.logits": "b s d", "router.experts": "b s k", "router.weights": "b s k",
    "moe.routed": "b s d", "moe.shared": "b s d", "mlp.out": "b s d", "hidden": "b s d",
    "kl.target": "b s t", "kl.student": "b s t", "kl.rows": "b s", "kl.dscores": "b s t",
    "loss.kl": "",
}  # fmt: skip
MODEL_AXES = {"embed": "b s d", "final_norm": "b s d", "logits": "b s d", "loss.lm": "",
              "loss.kl": ""}  # fmt: skip
MOE_TAPS = ("router.logits", "router.experts", "router.weights", "moe.routed", "moe.shared")
DECISIONS = ("topk", "router.experts")
# Mode generate: t steps, v the vocabulary.
GENERATED_AXES = {"gen.tokens": "b t", "gen.logits": "b t v"}
SERIES = ("train.loss", "train.grad_norm", "train.kl")
TAP = re.compile(r"(?:layers\.(0|[1-9]\d*)\.)?(.+)")


def split_tap(name: str) -> tuple[int | None, str]:
    """Layer (None: of the whole model) and the rest of a tap's name."""
    layer, rest = TAP.fullmatch(name).groups()
    return (None if layer is None else int(layer)), rest


def tap_axes(name: str) -> str | None:
    """The axes of a forward or KL tap; None when there is no such tap."""
    layer, rest = split_tap(name) if name else (None, "")
    return (MODEL_AXES if layer is None else LAYER_AXES).get(rest)


def tap_shape(case: CaseData, name: str, more: int = 0) -> tuple[int, ...] | None:
    """The shape of a forward or KL tap in this case; None when the case has no such tap.

    more: tokens behind those of the case.
    """
    layer, rest = split_tap(name)
    c, axes = case.config, tap_axes(name)
    if axes is None:
        return None
    if layer is not None and layer >= c["num_hidden_layers"]:
        return None
    if layer is not None and rest in MOE_TAPS and layer < c["first_k_dense_replace"]:
        return None
    width = {
        "q_latent": c["q_lora_rank"], "kv_latent": c["kv_lora_rank"],
        "q_nope": c["qk_nope_head_dim"], "q_rope": c["qk_rope_head_dim"],
        "k_rope": c["qk_rope_head_dim"], "ix.q": c["index_head_dim"], "ix.k": c["index_head_dim"],
        "attn.ctx": c["v_head_dim"], "router.logits": c["n_routed_experts"],
        "logits": c["vocab_size"],
    }.get(rest, c["hidden_size"])  # fmt: skip
    tokens = case.fields["S"] + more
    length = {
        "b": case.fields["B"], "s": tokens, "t": tokens, "d": width,
        "h": c["index_n_heads" if rest.startswith("ix.") else "num_attention_heads"],
        "k": c["index_topk" if rest == "topk" else "num_experts_per_tok"],
    }  # fmt: skip
    return tuple(length[axis] for axis in axes.split())


def forward_taps(case: CaseData) -> list[str]:
    """Every forward tap of the case, in execution order."""
    names = ["embed"]
    last = list(LAYER_AXES).index("hidden") + 1  # the KL taps come after it
    for layer in range(case.config["num_hidden_layers"]):
        names += [f"layers.{layer}.{tap}" for tap in list(LAYER_AXES)[:last]]
    names += ["final_norm", "logits", "loss.lm"]
    return [name for name in names if tap_shape(case, name) is not None]


def decoding_of(case: CaseData, given: Mapping[str, int | None] | None) -> dict[str, int | None]:
    """How a case is decoded: `eos` and `steps` as given, else as the list of cases has them.

    Throws DumpError when there are more steps than positions, or the vocabulary has no such eos.
    """
    decoding = {"eos": None, "steps": None}
    decoding |= listed_cases().get(case.name, {}).get("decoding", {})
    decoding |= given or {}
    most = case.config["max_position_embeddings"] - case.fields["S"] + 1
    ranges = {"steps": range(1, most + 1), "eos": range(case.config["vocab_size"])}
    for key, allowed in ranges.items():
        value = decoding[key]
        if value not in allowed and not (key == "eos" and value is None):
            want = f"{allowed[0]}..{allowed[-1]}" + (" or None: none ends" * (key == "eos"))
            hint = "Trace(case, mode='generate', decoding={'eos': ID, 'steps': N})"
            raise DumpError(4, "trace", f"metadata.decoding: {key}", want, str(value), hint)
    return decoding


def generated_shape(case: CaseData, name: str, steps: int) -> tuple[int, ...] | None:
    """The shape of a tensor of mode generate, decisions over the whole history among them."""
    if name in GENERATED_AXES:
        length = {"b": case.fields["B"], "t": steps, "v": case.config["vocab_size"]}
        return tuple(length[axis] for axis in GENERATED_AXES[name].split())
    decision = split_tap(name)[1] in DECISIONS if name else False
    return tap_shape(case, name, steps - 1) if decision else None


def rearranged(name: str, value: np.ndarray, axes: str, wanted: str, shape: tuple) -> np.ndarray:
    """`value`, whose axes are named by `axes`, in the order of `wanted`, whose lengths are `shape`.

    `(h d)` are axes in one; `1` is an axis of length one that goes away. Throws DumpError when the
    names are others than wanted, or the lengths do not fit.
    """
    groups = [g.strip("()").split() for g in re.findall(r"\([^)]*\)|\S+", axes)]
    given = [axis for group in groups for axis in group if axis != "1"]
    if sorted(given) != sorted(wanted.split()):
        raise DumpError(4, "trace", f"tensor {name}: axes", f"those of {wanted!r}", repr(axes))
    length = dict(zip(wanted.split(), shape, strict=True)) | {"1": 1}
    stored = tuple(math.prod(length[axis] for axis in group) for group in groups)
    if stored != value.shape:
        want = f"{sizes(stored)} for axes {axes!r}"
        raise DumpError(4, "trace", f"tensor {name}: shape", want, sizes(value.shape))
    value = value.reshape([length[axis] for axis in given])
    return value.transpose([given.index(axis) for axis in wanted.split()])


def sizes(shape: Iterable[int]) -> str:
    """A shape in the judge's writing: [2,33,64]."""
    return "[" + ",".join(map(str, shape)) + "]"


def interleaved(value: np.ndarray) -> np.ndarray:
    """Lanes (0, 2, 4, ..., 1, 3, 5, ...) of the last axis back in their places."""
    half = value.shape[-1] // 2
    return np.stack((value[..., :half], value[..., half:]), axis=-1).reshape(value.shape)


# Fused weights and gradients.

# What a wrapper (DataParallel, torch.compile, peft) puts before a parameter's name.
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")
# All experts of a layer in one tensor, as transformers (experts) and mlx-lm (switch_mlp) have them.
FUSED_EXPERTS = re.compile(
    r"^(.*)\.(?:experts|switch_mlp)\.(gate_up_proj|gate_proj|up_proj|down_proj)(?:\.weight)?$"
)
FUSED_MLP = re.compile(r"^(.*)\.gate_up_proj\.weight$")
DEMO_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def checkpoint_name(name: str) -> str:
    """A parameter's name without wrappers, with `model.`, and w1, w2, w3 of an FFN spelled out."""
    name = WRAPPERS.sub("", name)
    name = re.sub(r"\.(w[123])\.weight$", lambda m: f".{DEMO_NAMES[m[1]]}.weight", name)
    return "model." + name if re.match(r"(layers\.\d+|embed_tokens|norm)\.", name) else name


def unfused(
    name: str, value: Any, hidden: int, transposed: bool = False, halves: str = "gate up"
) -> Iterator[tuple[str, Any]]:
    """A parameter (or its gradient) as the unfused tensors of the checkpoint: names and views.

    value: an array of numpy or torch. transposed: a fused tensor is kept [E, in, out]; where its
    sizes tell, that is seen without being told. halves: order of a fused gate and up.
    """
    name = checkpoint_name(name)
    experts = FUSED_EXPERTS.match(name) if value.ndim == 3 else None
    mlp = FUSED_MLP.match(name) if value.ndim == 2 else None
    if mlp:
        yield from _halves(mlp[1], value, halves)
    if not experts:
        if not mlp:
            yield name, value
        return
    prefix, kind = experts.groups()
    want = value.shape[1 if kind == "down_proj" else 2]  # rows: inner channels, or hidden
    if transposed or (want != hidden and hidden in tuple(value.shape[1:])):
        value = value.swapaxes(1, 2)
    for expert in range(value.shape[0]):
        at = f"{prefix}.experts.{expert}"
        if kind == "gate_up_proj":
            yield from _halves(at, value[expert], halves)
        else:
            yield f"{at}.{kind}.weight", value[expert]


def _halves(prefix: str, value: Any, order: str) -> Iterator[tuple[str, Any]]:
    half = value.shape[0] // 2
    for part, rows in zip(order.split(), (value[:half], value[half:]), strict=True):
        yield f"{prefix}.{part}_proj.weight", rows


def joined_kv_b(k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """kv_b_proj [H (nope + v), kv_lora] of engines that keep two: [H, nope, kv], [H, v, kv]."""
    both = np.concatenate((k, v), axis=1)
    return both.reshape(-1, both.shape[-1])


ADAPTED = (
    "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj", "up_proj",
    "down_proj", "indexer.wq_b", "indexer.wk", "indexer.weights_proj",
)  # fmt: skip
LORA_RANK = 8  # of the recipes


def factor_shape(case: CaseData, name: str) -> tuple[int, ...] | None:
    """The shape of a LoRA factor, `MODULE.lora_A.weight` or `.lora_B.weight`; None of no such name.

    Of the fused experts: A [experts * rank, in], B [out, rank * experts], as peft saves them.
    """
    found = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
    if found is None:
        return None
    module, side = found.groups()
    fused = re.fullmatch(r"(.+\.mlp\.experts)\.(gate_up|down)_proj", module)
    first = f"{fused[1]}.0.{fused[2].removesuffix('_up')}_proj" if fused else module
    weight = case.weight_shapes.get(f"{first}.weight")
    if weight is None or not module.endswith((*ADAPTED, "gate_up_proj")):
        return None
    if not fused and ".experts." in module:
        return None
    rank = LORA_RANK * (case.config["n_routed_experts"] if fused else 1)
    halves = 2 if fused and fused[2] == "gate_up" else 1
    return (rank, weight[1]) if side == "A" else (halves * weight[0], rank)


# The trace.


class Trace:
    """The taps of one run, checked as they come; `write` makes the file that the judge reads.

    mode: forward, backward, kl-warmup, kl-sparse, train, ops or generate. dtype: what the engine
    computes in (values may be stored wider). engine: name and version, for people. forced:
    decisions of another run were replayed. rank of world: this file is one rank's; `put` says where
    its tensors stand.
    decoding: of mode generate, {"eos": ID or None, "steps": N}; default: the listed case's.
    Other metadata by name; a dict or list becomes JSON.
    """

    def __init__(
        self, case: CaseData, mode: str = "forward", dtype: str = "float32", *, engine: str = "",
        attn_implementation: str = "unknown", forced: bool = False, rank: int = 0, world: int = 1,
        decoding: Mapping[str, int | None] | None = None, **metadata: Any,
    ) -> None:  # fmt: skip
        self.case, self.taps = case, {}
        self.placement: dict[str, Any] = {}
        if not 0 <= rank < world:
            raise DumpError(4, "trace", "metadata.rank", f"a rank below world, {world}", str(rank))
        if world > 1:
            metadata |= {"rank": str(rank), "world": str(world)}
        for key, value, allowed in (("mode", mode, MODES), ("dtype", dtype, DTYPES)):
            if value not in allowed:
                raise DumpError(4, "trace", f"metadata.{key}", " or ".join(sorted(allowed)), value)
        self.steps = 0
        if mode == "generate":
            metadata["decoding"] = decoding_of(case, decoding)
            self.steps = int(metadata["decoding"]["steps"])
        producer = {"tool": "dsv32_trace", "engine": engine, "numpy": np.__version__,
                    "python": platform.python_version()}  # fmt: skip
        self.metadata: dict[str, Any] = {
            "format": "dsv32-verify.trace",
            "version": "1",
            "case": case_metadata(case.fields),
            "mode": mode,
            "dtype": dtype,
            "rope_layout": "interleaved",
            "mask": "none" if case.attention_mask is None else "given",
            "weights": weights_name(case.fields),
            "forced": "true" if forced else "false",
            "attn_implementation": attn_implementation,
            "producer": producer,
        } | metadata

    def put(
        self, name: str, value: Any, axes: str | None = None, lanes: str = "in place",
        allow_nan: bool = False, placement: str | tuple[str | int, int] = "replicated",
    ) -> None:  # fmt: skip
        """Adds a tap: a tensor of numpy, torch, mlx or anything that numpy takes.

        axes: what the axes of `value` are, in its order, such as "b h s d" or "(b s) (h d)";
        default: those of the format, tap_axes(name).
        lanes: "deinterleaved" where rotated lanes stand as even ones, then odd ones.
        topk may be a mask [b, s, t] of bool; scores of minus infinity may be any huge negative.
        allow_nan: a NaN in a row that counts is meant for the judge, who will say so.
        placement: of one rank's tensor: "replicated", "partial" (a summand), or (axis, offset) of
        a piece: a letter or number of the format's axes, and its first index there.
        Throws DumpError with the judge's words for a name, shape or type that it would refuse.
        """
        array, stem = as_array(value), name.removeprefix("dtap.")
        shape, wanted = self._expected(name, stem, array)
        rest = split_tap(stem)[1]
        shape, offsets = self._placed(name, array, shape, axes, wanted, placement)
        decision = (rest in DECISIONS or name == "gen.tokens") and name == stem
        if rest == "topk" and decision:
            array = self._picks(array, shape[-1])
        if axes is not None:
            array = rearranged(name, array, axes, wanted, shape)
        if array.size == 1 and shape == ():
            array = array.reshape(())
        if shape != array.shape:
            decoding = f" with {self.steps} steps" if self.steps else ""
            want = f"{sizes(shape)}, as case {self.case.name}{decoding} says"
            hint = f"say which axes these are: put(..., axes={wanted!r})" if wanted else ""
            raise DumpError(4, "trace", f"tensor {name}: shape", want, sizes(array.shape), hint)
        array = self._typed(name, decision, array)
        if lanes != "in place":
            array = self._lanes(name, rest, array, lanes)
        if rest in ("ix.scores", "attn.logits") and name == stem:
            lowest = np.finfo(array.dtype if self.metadata["dtype"] != "float16" else "f2").min
            array = np.where(array <= lowest / 2, -np.inf, array)
        if not allow_nan and name != "gen.logits":  # behind an end it holds anything
            self._no_nan(name, wanted, array, offsets)
        self.taps[name] = array.copy(order="C")

    def put_gradient(
        self, name: str, value: Any, axes: str | None = None, halves: str = "gate up"
    ) -> None:
        """Adds grad.NAME of a parameter, split into the checkpoint's tensors where it is fused.

        name: of the checkpoint, or fused (`...mlp.experts.gate_up_proj`, `...mlp.gate_up_proj.
        weight`, `...mlp.switch_mlp.down_proj.weight`). value None: an expert that got no token.
        axes: "e o i" or "o i" in the order of `value`: experts, rows, columns of the checkpoint.
        halves: "up gate" where up is first.
        """
        name = checkpoint_name(name)
        if value is None:
            value = self._zeros(name)
        array = as_array(value)
        if axes is not None:
            order = [axes.split().index(axis) for axis in "e o i".split()[-array.ndim :]]
            array = array.transpose(order)
        hidden = self.case.config["hidden_size"] if axes is None else array.shape[-1]
        if axes is not None and name.endswith(("down_proj", "down_proj.weight")):
            hidden = array.shape[-2]
        for part, rows in unfused(name, array, hidden, halves=halves):
            self.put(f"grad.{part}", rows)

    def put_rows(self, name: str, rows: Any, index: Iterable[int]) -> None:
        """Adds chosen rows of a tap (of logits: serving engines have the last ones): [n, width].

        index: b * S + s of each row.
        """
        if self.steps:
            raise DumpError(2, "trace", f"tensor {name}#rows", "a whole tensor", "rows")
        array, index = np.stack([as_array(row) for row in rows]), np.asarray(list(index), np.int64)
        shape, _ = self._expected(name, name, array)
        want = (len(index), *shape[2:])
        if array.shape != want:
            got = sizes(array.shape)
            raise DumpError(4, "trace", f"tensor {name}#rows: shape", sizes(want), got)
        count = shape[0] * shape[1]
        if ((index < 0) | (index >= count)).any() or len(set(index.tolist())) != len(index):
            want = f"different rows b * S + s below {count}"
            raise DumpError(4, "trace", f"tensor {name}#row_index", want, str(index.tolist()))
        self.taps[f"{name}#rows"] = np.ascontiguousarray(array, np.float32)
        self.taps[f"{name}#row_index"] = index

    def derive_loss(self) -> float:
        """Puts loss.lm of the logits that were put, for engines that compute none."""
        logits = np.asarray(self.taps["logits"], np.float64)[:, :-1]
        labels = self.case.labels[:, 1:]
        highest = logits.max(-1, keepdims=True)
        norm = np.log(np.exp(logits - highest).sum(-1)) + highest[..., 0]
        picked = np.take_along_axis(logits, np.maximum(labels, 0)[..., None], -1)[..., 0]
        loss = (norm - picked)[labels != -100].mean()
        self.put("loss.lm", loss.astype(self.taps["logits"].dtype))
        self.metadata["derived_taps"] = [*self.metadata.get("derived_taps", ()), "loss.lm"]
        return float(loss)

    def compare_weights(self, loaded: Mapping[str, Any]) -> dict[str, Any]:
        """Says in the trace how the engine's own parameters compare with the checkpoint's values.

        loaded: arrays by checkpoint name, fused ones too. The judge looks there first: an engine
        that did not load its weights is named as such before any tap.
        """
        hidden, own = self.case.config["hidden_size"], {}
        for name, value in loaded.items():
            own.update(unfused(name, as_array(value), hidden))
        shapes = self.case.weight_shapes
        different = [n for n in shapes if n in own and not self._same(n, own[n])]
        found = {
            "identical": sum(n in own for n in shapes) - len(different),
            "different": sorted(different),
            "missing": sorted(set(shapes) - set(own)),
            "unexpected": sorted(set(own) - set(shapes)),
        }
        self.metadata["weights_loaded"] = found
        return found

    def missing(self) -> list[str]:
        """The forward taps of this case that were not put: allowed, the judge lists them."""
        names = forward_taps(self.case)
        if self.steps:
            decisions = [name for name in names if split_tap(name)[1] in DECISIONS]
            names = [*GENERATED_AXES, *decisions]
        return [name for name in names if name not in self.taps]

    def failed(self, where: str, message: str, shapes: Iterable[Iterable[int]] = ()) -> None:
        """Says that the engine crashed: in which module, with what words and inputs."""
        shapes = [list(shape) for shape in shapes]
        self.metadata["failure"] = {"where": where, "message": message, "shapes": shapes}

    def write(self, path: str | Path) -> Path:
        """Writes the file whole or not at all. Throws DumpError when it cannot, or has no tap."""
        if not self.taps and "failure" not in self.metadata:
            raise DumpError(5, str(path), "trace", "at least one tap", "none")
        for key, value in self.metadata.items():
            if value in (None, ""):
                what = f"metadata.{key}"
                raise DumpError(4, str(path), what, "a value", "an empty text")
        self._sort_experts()
        metadata = {"missing_taps": self.missing()} | self.metadata
        if self.placement:
            metadata["placement"] = self.placement
        texts = {k: v if isinstance(v, str) else canonical_json(v) for k, v in metadata.items()}
        return write_safetensors(Path(path), self.taps, texts)

    def _expected(self, name: str, stem: str, array: np.ndarray) -> tuple[tuple[int, ...], str]:
        """Shape and axes of a tensor of this name. Throws DumpError when the case has none."""
        if self.steps:
            return self._generated(name)
        if name in SERIES and array.ndim == 1:
            return array.shape, ""
        weight = re.fullmatch(r"(?:grad|param|step\.\d+\.update)\.(.+)", name)
        if weight and weight[1] in self.case.weight_shapes:
            return self.case.weight_shapes[weight[1]], ""
        if weight and name.startswith("step."):
            shape = factor_shape(self.case, weight[1])
            if shape is not None:
                return shape, ""
        if re.fullmatch(r"step\.\d+\.(loss|grad_norm)", name):
            return (), ""
        axes = tap_axes(stem)
        if axes is None and not weight:
            want = "a tap name (layers.N.attn.out, grad.model.norm.weight, ...)"
            raise DumpError(4, "trace", "tensor", want, repr(name), self._near(stem))
        shape = None if weight else tap_shape(self.case, stem)
        if shape is None:
            want = f"a tap that case {self.case.name} has"
            got = "a layer or a weight that it does not have"
            raise DumpError(4, "trace", f"tensor {name}", want, got)
        return shape, str(axes)

    def _generated(self, name: str) -> tuple[tuple[int, ...], str]:
        shape = generated_shape(self.case, name, self.steps)
        if shape is None:
            want = "gen.tokens, gen.logits, layers.N.topk or layers.N.router.experts, as "
            want += f"case {self.case.name} has them in mode generate"
            raise DumpError(4, "trace", "tensor", want, repr(name))
        return shape, GENERATED_AXES.get(name) or str(tap_axes(name))

    def _near(self, name: str) -> str:
        """Names of taps that have a part of this one."""
        words = set(re.split(r"[._]", name)) - {"layers", *map(str, range(256))}
        near = [n for n in (*MODEL_AXES, *LAYER_AXES) if words & set(re.split(r"[._]", n))]
        return "taps: " + ", ".join(near or (*MODEL_AXES, *LAYER_AXES))

    def _picks(self, picks: np.ndarray, width: int) -> np.ndarray:
        """Selected keys as indices with -1 behind them, from indices or a mask."""
        if picks.dtype == np.bool_:
            order = np.argsort(~picks, axis=-1, kind="stable")
            picks = np.where(np.take_along_axis(picks, order, -1), order, -1)
        if picks.shape[-1] > width and (picks[..., width:] == -1).all():
            picks = picks[..., :width]
        lacking = [(0, 0)] * (picks.ndim - 1) + [(0, max(0, width - picks.shape[-1]))]
        return np.pad(picks, lacking, constant_values=-1)

    def _typed(self, name: str, decision: bool, array: np.ndarray) -> np.ndarray:
        kind = array.dtype.kind
        if decision and kind in "iu":
            if array.size and (abs(array.astype(np.int64)) > np.iinfo(np.int32).max).any():
                raise DumpError(4, "trace", f"tensor {name}", "a value within 32 bits", "a larger")
            return array.astype(np.int32)
        if not decision and kind == "f" and array.dtype.name in STORED:
            return array
        want = "I32 (or I64)" if decision else "F64, F32, BF16 or F16"
        got = STORED.get(array.dtype.name, array.dtype.name)
        raise DumpError(4, "trace", f"tensor {name}: dtype", want, got)

    def _lanes(self, name: str, rest: str, array: np.ndarray, lanes: str) -> np.ndarray:
        if lanes != "deinterleaved" or rest not in ("q_rope", "k_rope", "ix.q", "ix.k"):
            want = "'in place', or 'deinterleaved' of q_rope, k_rope, ix.q, ix.k"
            raise DumpError(2, "trace", f"tensor {name}: lanes", want, repr(lanes))
        rope = self.case.config["qk_rope_head_dim"]
        return np.concatenate((interleaved(array[..., :rope]), array[..., rope:]), axis=-1)

    def _placed(
        self, name: str, array: np.ndarray, shape: tuple[int, ...], axes: str | None, wanted: str,
        placement: str | tuple[str | int, int],
    ) -> tuple[tuple[int, ...], dict[int, int]]:  # fmt: skip
        """The shape that one rank's tensor must have; and of a piece its offset, by axis."""
        if isinstance(placement, str):
            if placement not in ("replicated", "partial"):
                want = "'replicated', 'partial' or (axis, offset)"
                raise DumpError(2, "trace", f"tensor {name}: placement", want, repr(placement))
            if placement == "partial":
                self.placement[name] = "partial"
            return shape, {}
        axis, offset = placement
        letters = wanted.split()
        dim = letters.index(axis) if axis in letters else axis
        if not isinstance(dim, int) or not 0 <= dim < len(shape):
            want = f"an axis of {wanted!r}" if letters else f"an axis below {len(shape)}"
            raise DumpError(2, "trace", f"tensor {name}: placement", want, repr(axis))
        own = axes.split().index(letters[dim]) if axes and letters[dim] in axes.split() else dim
        size = array.shape[own] if array.ndim > own else 0
        if not 0 <= offset <= offset + size <= shape[dim] or size == 0:
            want = f"a piece within {shape[dim]} along axis {axis}"
            got = f"{size} from {offset} on"
            raise DumpError(4, "trace", f"tensor {name}: placement", want, got)
        self.placement[name] = {"dim": dim, "offset": offset}
        return (*shape[:dim], size, *shape[dim + 1 :]), {dim: offset}

    def _no_nan(
        self, name: str, axes: str, array: np.ndarray, offsets: dict[int, int] | None = None
    ) -> None:
        """Rows of padded queries are never judged and may hold anything."""
        if array.dtype.kind != "f" or not np.isnan(array).any():
            return
        bad = np.isnan(array)
        if "s" in axes.split():
            valid = self.case.batch["attention_mask"] == 1
            order = [axes.split().index(axis) for axis in ("b", "s")]
            for i, axis in enumerate(order):
                first = (offsets or {}).get(axis, 0)
                valid = valid.take(range(first, first + bad.shape[axis]), axis=i)
            bad = np.moveaxis(bad, order, (0, 1))
            bad &= valid.reshape(*valid.shape, *[1] * (bad.ndim - 2))
        if bad.any():
            where = [int(i) for i in np.argwhere(bad)[0]]
            hint = "put(..., allow_nan=True) hands it to the judge"
            got = f"{int(bad.sum())} NaN, the first at {where}"
            raise DumpError(4, "trace", f"tensor {name}", "numbers in rows that count", got, hint)

    def _zeros(self, name: str) -> np.ndarray:
        shape = self.case.weight_shapes.get(name)
        if shape is None or ".experts." not in name:
            hint = "leave out the gradient of a frozen weight"
            want = "a gradient (none only for an expert without tokens)"
            raise DumpError(4, "trace", f"tensor grad.{name}", want, "none", hint)
        return np.zeros(shape, np.float32)

    def _same(self, name: str, value: np.ndarray) -> bool:
        want = self.case.weight(name)
        return want.shape == value.shape and bool((want == value).all())

    def _sort_experts(self) -> None:
        """Experts ascending, weights aligned with them: the form of the tap."""
        for name in [n for n in self.taps if n.endswith(".router.experts")]:
            order = np.argsort(self.taps[name], axis=-1, kind="stable")
            for tap in (name, name.replace("experts", "weights")):
                if tap in self.taps:
                    self.taps[tap] = np.take_along_axis(self.taps[tap], order, -1)


def as_array(value: Any) -> np.ndarray:
    """A numpy array of any tensor; bfloat16, which numpy does not have, becomes float32."""
    if hasattr(value, "detach"):  # torch
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value.numpy()
    elif "bfloat16" in str(getattr(value, "dtype", "")):  # mlx, jax, ml_dtypes
        value = value.astype(np.float32) if isinstance(value, np.ndarray) else _widened(value)
    array = np.asarray(value)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _widened(value: Any) -> Any:
    """A bfloat16 array of a library whose types are not numpy's."""
    library = __import__(type(value).__module__.partition(".")[0] + ".core", fromlist=["float32"])
    return value.astype(library.float32)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> Path:
    """A safetensors file, whole or not at all. Throws DumpError when it cannot be written."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, value in tensors.items():
        start, end = end, end + value.nbytes
        dtype, shape = STORED[value.dtype.name], list(value.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for value in tensors.values():
                file.write(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
        os.replace(part, path)
    except OSError as error:
        raise DumpError(6, str(path), "output", "a writable file", str(error)) from error
    finally:
        part.unlink(missing_ok=True)
    return path
