"""Which module of a model is which part of the paper, told by structure and checkpoint names alone.

Class names differ from fork to fork; the names of the weights do not, or users could not load them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from .errors import DumpError


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
    def of(cls, config: Any) -> Sizes:
        """The sizes in a model's config. Throws DumpError when one is not there."""
        config = getattr(config, "text_config", None) or config
        names = {field.name: field.metadata["key"] for field in dataclasses.fields(cls)}
        values = {field: getattr(config, name, None) for field, name in names.items()}
        absent = [names[field] for field, value in values.items() if value is None]
        if absent:
            where, got = type(config).__name__, "no " + ", ".join(absent)
            raise DumpError(4, where, "config", "the fields of DeepSeek-V3.2", got)
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Part:
    """A module with a known place in the paper.

    role: attention, indexer, gate, q_b, ...: what the recorder does with the module's calls.
    layer: counted from 0; -1 outside the layers.
    """

    role: str
    layer: int = -1


def has_children(module: nn.Module, *names: str) -> bool:
    """Whether a module has direct children of all these names."""
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
    """Whether a module compresses keys and values, which makes it multi-head latent attention."""
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
    """Role -> name of child in an indexer.

    By the checkpoint's names; in a fork that renamed them the norm and the head weights are told by
    their shape and place.
    """
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
