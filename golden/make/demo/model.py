"""The demo's model with a case's synthetic weights: its file checked, imported, built, filled."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import torch
from real import GoldenError
from synthetic import Case, case_weight, weight_specs
from torch import Tensor, nn

from demo.kernels import CODE, RUN, Kernels, quantise_weight

SHA256 = "6e2a664e8d024d625c9d1a2dd85b66ecd477af9994c8c7d7cd9d0521e028f0ef"
RELEASE = "the inference/model.py of the final V3.2 release (off-v32)"

# Checkpoint name (layers.N. and model. cut off) to the demo's.
NAMES = (
    (r"embed_tokens", "embed"),
    (r"lm_head", "head"),
    (r"input_layernorm", "attn_norm"),
    (r"post_attention_layernorm", "ffn_norm"),
    (r"self_attn\.q_a_proj", "attn.wq_a"),
    (r"self_attn\.q_a_layernorm", "attn.q_norm"),
    (r"self_attn\.q_b_proj", "attn.wq_b"),
    (r"self_attn\.kv_a_proj_with_mqa", "attn.wkv_a"),
    (r"self_attn\.kv_a_layernorm", "attn.kv_norm"),
    (r"self_attn\.kv_b_proj", "attn.wkv_b"),
    (r"self_attn\.o_proj", "attn.wo"),
    (r"self_attn\.indexer", "attn.indexer"),
    (r"mlp\.gate\.e_score_correction_bias", "ffn.gate.bias"),
    (r"mlp", "ffn"),
)
PROJECTIONS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


@dataclasses.dataclass(frozen=True)
class Mode:
    """What a run computes in.

    dtype: float32, bfloat16 or fp8. quantised: latent and indexer in e4m3, as shipped (always in
    fp8). ue8m0: scales are powers of two.
    """

    dtype: str
    quantised: bool
    ue8m0: bool = True

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == "float32" else torch.bfloat16

    @property
    def scale_fmt(self) -> str | None:
        return "ue8m0" if self.ue8m0 else None


MODES = {
    "float32": Mode("float32", False),
    "bf16": Mode("bfloat16", False),
    "bf16-shipped": Mode("bfloat16", True),
    "bf16-shipped-plain": Mode("bfloat16", True, ue8m0=False),
    "fp8": Mode("fp8", True),
    "fp8-plain": Mode("fp8", True, ue8m0=False),
}


@dataclasses.dataclass(frozen=True)
class Demo:
    """The demo's module and a model of it. weights: what it was given, as the oracle reads it."""

    module: types.ModuleType
    model: nn.Module
    mode: Mode
    weights: dict[str, Tensor]


def check_file(path: Path) -> None:
    """Throws GoldenError unless this is the one file that was checked."""
    try:
        got = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise GoldenError(f"--model {path}: file: expected {RELEASE}, got {error}") from error
    if got != SHA256:
        raise GoldenError(
            f"--model {path}: sha256: expected {SHA256}, got {got}; hint: {RELEASE}, unchanged"
        )


@contextlib.contextmanager
def in_place_of_packages(kernels: Kernels) -> Iterator[None]:
    """While this holds, the demo's imports find `kernels`."""
    modules = {"kernel": types.ModuleType("kernel")}
    modules["fast_hadamard_transform"] = types.ModuleType("fast_hadamard_transform")
    for name in ("act_quant", "fp8_gemm", "fp8_index"):
        setattr(modules["kernel"], name, getattr(kernels, name))
    modules["fast_hadamard_transform"].hadamard_transform = kernels.hadamard_transform
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def open_demo(path: Path, case: Case, mode: Mode) -> Demo:
    """The demo's model on a case. Throws GoldenError for another file, or a case it cannot run."""
    check_file(path)
    check_case(case, mode)
    kernels = Kernels(mode.quantised)
    with in_place_of_packages(kernels):
        spec = importlib.util.spec_from_file_location("official_demo", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    # One process: the picks that it would broadcast are its own.
    module.dist = types.SimpleNamespace(
        is_initialized=lambda: False, broadcast=lambda tensor, src: None
    )
    # The latent is viewed in blocks of this size; narrower rows are one run.
    module.block_size = min(RUN, case.config["kv_lora_rank"])
    with default_dtype(mode.torch_dtype), torch.no_grad():
        model = module.Transformer(arguments(module, case, mode))
        adapt(model, case, mode)
        weights = fill(model, case, mode)
    return Demo(module, model, mode, weights)


def check_case(case: Case, mode: Mode) -> None:
    """Throws GoldenError for what the demo has no words for."""
    config = case.config
    rows = ("hidden_size", "q_lora_rank", "kv_lora_rank", "moe_intermediate_size",
            "intermediate_size", "index_head_dim")  # fmt: skip
    ragged = [key for key in rows if config[key] % RUN]
    width = config["num_attention_heads"] * config["v_head_dim"]
    wrong = {
        "use_sparse_attention": not case.sparse_attention,
        "position_offset": case.position_offset != 0,
        "chunks": any(n != 1 for n in case.chunks[1:]),
        "norm_topk_prob": not config["norm_topk_prob"],
        f"fp8: rows of multiples of {RUN}": mode.dtype == "fp8" and bool(ragged or width % RUN),
    }
    found = [name for name, bad in wrong.items() if bad]
    if found:
        raise GoldenError(f"{case.name}: expected a case that the demo can run, got {found}")


def arguments(module: types.ModuleType, case: Case, mode: Mode) -> object:
    """The demo's own description of a model."""
    config, yarn = case.config, case.config.get("rope_scaling") or {}
    length = config["max_position_embeddings"]
    return module.ModelArgs(
        max_batch_size=case.B,
        max_seq_len=length,
        dtype="fp8" if mode.dtype == "fp8" else "bf16",
        scale_fmt=mode.scale_fmt,
        vocab_size=config["vocab_size"],
        dim=config["hidden_size"],
        inter_dim=config["intermediate_size"],
        moe_inter_dim=config["moe_intermediate_size"],
        n_layers=config["num_hidden_layers"],
        n_dense_layers=config["first_k_dense_replace"],
        n_heads=config["num_attention_heads"],
        n_routed_experts=config["n_routed_experts"],
        n_shared_experts=config["n_shared_experts"],
        n_activated_experts=config["num_experts_per_tok"],
        n_expert_groups=config["n_group"],
        n_limited_groups=config["topk_group"],
        score_func=config["scoring_func"],
        route_scale=config["routed_scaling_factor"],
        q_lora_rank=config["q_lora_rank"],
        kv_lora_rank=config["kv_lora_rank"],
        qk_nope_head_dim=config["qk_nope_head_dim"],
        qk_rope_head_dim=config["qk_rope_head_dim"],
        v_head_dim=config["v_head_dim"],
        # YaRN is on where the cache is longer than this.
        original_seq_len=yarn.get("original_max_position_embeddings", length),
        rope_theta=config["rope_theta"],
        rope_factor=yarn.get("factor", 1),
        beta_fast=yarn.get("beta_fast", 32),
        beta_slow=yarn.get("beta_slow", 1),
        mscale=yarn.get("mscale_all_dim", 1),
        index_n_heads=config["index_n_heads"],
        index_head_dim=config["index_head_dim"],
        index_topk=config["index_topk"],
    )


def adapt(model: nn.Module, case: Case, mode: Mode) -> None:
    """What the released sizes have and others lack: the correction bias, caches wide enough."""
    if mode.dtype == "float32":
        model.float()
    for layer in model.layers:
        indexer = layer.attn.indexer
        shape = indexer.k_cache.shape
        code = CODE if mode.quantised else mode.torch_dtype
        indexer.k_cache = torch.zeros(shape, dtype=code)
        indexer.k_scale_cache = torch.zeros(*shape[:2], 1, dtype=torch.float32)
        gate = getattr(layer.ffn, "gate", None)
        if gate is not None and gate.bias is None:
            gate.bias = nn.Parameter(torch.zeros(case.config["n_routed_experts"]).float())


def demo_name(name: str) -> str:
    """The demo's name of a checkpoint tensor."""
    prefix, rest = re.fullmatch(r"(?:model\.)?(layers\.\d+\.)?(.+)", name).groups()
    for pattern, new in NAMES:
        if re.match(pattern + r"(\.|$)", rest):
            rest = re.sub("^" + pattern, new, rest)
            break
    rest = re.sub(r"(gate_proj|down_proj|up_proj)", lambda m: PROJECTIONS[m[1]], rest)
    return (prefix or "") + rest


def fill(model: nn.Module, case: Case, mode: Mode) -> dict[str, Tensor]:
    """Copies the case's weights into the model, every parameter once, and compares them bit by bit.

    Returns the values by checkpoint name: in fp8 what the codes stand for.
    """
    parameters, given = dict(model.named_parameters()), {}
    for name, shape in weight_specs(case.config).items():
        value, target = torch.from_numpy(case_weight(case, name, shape)), demo_name(name)
        if target not in parameters:
            raise GoldenError(f"{name}: expected the demo's parameter {target}, got none")
        parameter = parameters.pop(target)
        if parameter.dtype == CODE:
            codes, scales, value = quantise_weight(value, mode.ue8m0)
            parameter.copy_(codes)
            scale = parameters.pop(target.replace(".weight", ".scale"))
            scale.copy_(scales)
            same = torch.equal(parameter.view(torch.uint8), codes.view(torch.uint8))
            same = same and torch.equal(scale, scales)
        else:
            parameter.copy_(value)
            same = torch.equal(parameter.float(), value)
        if not same:
            raise GoldenError(f"{name}: expected the checkpoint's bits in {target}, got others")
        given[name] = value
    if parameters:
        raise GoldenError(f"{case.name}: parameters without a weight: {sorted(parameters)}")
    return given
