"""DeepSeek-V3.2 in plain torch, written for the tests of golden/dump: the formulas alone.

It shares the checkpoint's names with Hugging Face code and otherwise as little as possible: other
class names, experts as single modules, a gate that returns weights and indices, main rotation
written inline and in place, head weights of the indexer applied as a function. In float64 it is the
check of the values that dump takes from real code; as a model to dump it is a fork that nobody
has seen before.
"""

from __future__ import annotations

import math
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def frequencies(config: dict[str, Any]) -> tuple[Tensor, float, float]:
    """Rotation speeds [rope/2], amplitude of the dialect hf, factor on the softmax scale."""
    dim, base, yarn = config["qk_rope_head_dim"], config["rope_theta"], config.get("rope_scaling")
    pair = torch.arange(dim // 2, dtype=torch.float64)
    speed = base ** (-2 * pair / dim)
    if not yarn:
        return speed, 1.0, 1.0

    def pair_of(rotations: float) -> float:
        reach = yarn["original_max_position_embeddings"] / (2 * math.pi * rotations)
        return dim * math.log(reach) / (2 * math.log(base))

    low = max(math.floor(pair_of(yarn["beta_fast"])), 0)
    high = min(math.ceil(pair_of(yarn["beta_slow"])), dim - 1)
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    growth = [
        0.1 * yarn[key] * math.log(yarn["factor"]) + 1 for key in ("mscale", "mscale_all_dim")
    ]
    return speed / yarn["factor"] * ramp + speed * (1 - ramp), growth[0] / growth[1], growth[1] ** 2


def apply_rotary_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B,S,heads,rope], lanes (i, i + rope/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Scale(nn.Module):
    """RMS norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weight


def linear(inner: int, outer: int) -> nn.Linear:
    return nn.Linear(inner, outer, bias=False)


class Picker(nn.Module):
    """The lightning indexer."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.heads, self.dim = config["index_n_heads"], config["index_head_dim"]
        self.rope, self.index_topk = config["qk_rope_head_dim"], config["index_topk"]
        self.wq_b = linear(config["q_lora_rank"], self.heads * self.dim)
        self.wk = linear(config["hidden_size"], self.dim)
        self.k_norm = nn.LayerNorm(self.dim, eps=1e-6)
        self.weights_proj = linear(config["hidden_size"], self.heads)

    @torch.no_grad()
    def forward(
        self, x: Tensor, latent: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor
    ) -> Tensor:
        B, S, _ = x.shape
        q = self.rotate(self.wq_b(latent).view(B, S, self.heads, self.dim), turn)
        k = self.rotate(self.k_norm(self.wk(x)).view(B, S, 1, self.dim), turn)
        weight = F.linear(x, self.weights_proj.weight) * (self.heads * self.dim) ** -0.5
        match = torch.einsum("bshd,btd->bsht", q, k.squeeze(2)).relu()
        score = torch.einsum("bsh,bsht->bst", weight, match).masked_fill(~seen, -math.inf)
        return torch.topk(score, min(self.index_topk, S), dim=-1).indices

    def rotate(self, states: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        first, rest = states[..., : self.rope], states[..., self.rope :]
        return torch.cat((apply_rotary_halves(first, *turn), rest), dim=-1)


class Look(nn.Module):
    """Multi-head latent attention."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, self.heads = config["hidden_size"], config["num_attention_heads"]
        self.nope, self.rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        self.v, self.kv = config["v_head_dim"], config["kv_lora_rank"]
        self.q_a_proj = linear(hidden, config["q_lora_rank"])
        self.q_a_layernorm = Scale(config["q_lora_rank"])
        self.q_b_proj = linear(config["q_lora_rank"], self.heads * (self.nope + self.rope))
        self.kv_a_proj_with_mqa = linear(hidden, self.kv + self.rope)
        self.kv_a_layernorm = Scale(self.kv)
        self.kv_b_proj = linear(self.kv, self.heads * (self.nope + self.v))
        self.o_proj = linear(self.heads * self.v, hidden)
        self.indexer = Picker(config)
        self.scale = (self.nope + self.rope) ** -0.5 * frequencies(config)[2]

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor) -> Tensor:
        B, S, _ = x.shape
        latent = self.q_a_layernorm(self.q_a_proj(x))
        q = self.q_b_proj(latent).view(B, S, self.heads, -1)
        down = self.kv_a_proj_with_mqa(x)
        up = self.kv_b_proj(self.kv_a_layernorm(down[..., : self.kv])).view(B, S, self.heads, -1)
        k = torch.cat(
            (up[..., : self.nope], self.rotated(down[..., None, self.kv :], turn)), dim=-1
        )
        q = torch.cat((q[..., : self.nope], self.turned(q[..., self.nope :], turn)), dim=-1)
        picks = self.indexer(x, latent, turn, seen)
        allowed = torch.zeros_like(seen).scatter(-1, picks, True) & seen
        logits = torch.matmul(q.transpose(1, 2), k.transpose(1, 2).transpose(2, 3)) * self.scale
        logits = logits.masked_fill(~allowed.unsqueeze(1), torch.finfo(logits.dtype).min)
        probs = logits.softmax(dim=-1) * allowed.unsqueeze(1)
        context = torch.matmul(probs, up[..., self.nope :].transpose(1, 2)).transpose(1, 2)
        return self.o_proj(context.reshape(B, S, -1))

    def rotated(self, lanes: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        return self.turned(lanes, turn).expand(-1, -1, self.heads, -1)

    def turned(self, lanes: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Lanes (2i, 2i+1), written where they were."""
        cos, sin = turn
        a, b = lanes[..., 0::2], lanes[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


class Swiglu(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = linear(hidden, inner), linear(hidden, inner)
        self.down_proj = linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Choice(nn.Module):
    """The router: weights and expert indices, [N,K] each."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        experts = config["n_routed_experts"]
        self.weight = nn.Parameter(torch.zeros(experts, config["hidden_size"]))
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        config, experts = self.config, self.config["n_routed_experts"]
        score = (x @ self.weight.T).sigmoid()
        wanted = score + self.e_score_correction_bias
        groups = wanted.view(len(x), config["n_group"], -1)
        best = groups.topk(2, dim=-1).values.sum(-1).topk(config["topk_group"], dim=-1).indices
        kept = torch.zeros(len(x), config["n_group"], dtype=torch.bool).scatter(-1, best, True)
        kept = kept.repeat_interleave(experts // config["n_group"], dim=-1)
        wanted = wanted.masked_fill(~kept, -math.inf)
        index = torch.topk(wanted, config["num_experts_per_tok"], dim=-1).indices
        weight = score.gather(-1, index)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20) * config["routed_scaling_factor"]
        return weight, index


class Mixture(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
        self.gate = Choice(config)
        experts = (Swiglu(hidden, inner) for _ in range(config["n_routed_experts"]))
        self.experts = nn.ModuleList(experts)
        self.shared_experts = Swiglu(hidden, inner * config["n_shared_experts"])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weight, index = self.gate(flat)
        routed = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(index == number)
            if len(token):
                part = expert(flat[token]) * weight[token, place, None]
                routed = routed.index_add(0, token, part)
        return routed.view_as(x) + self.shared_experts(x)


class Block(nn.Module):
    def __init__(self, config: dict[str, Any], layer: int) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.input_layernorm, self.post_attention_layernorm = Scale(hidden), Scale(hidden)
        self.self_attn = Look(config)
        dense = layer < config["first_k_dense_replace"]
        self.mlp = Swiglu(hidden, config["intermediate_size"]) if dense else Mixture(config)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, seen)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        blocks = (Block(config, layer) for layer in range(config["num_hidden_layers"]))
        self.layers = nn.ModuleList(blocks)
        self.norm = Scale(config["hidden_size"])


class PlainModel(nn.Module):
    """The whole model; `config` is a parsed config.json."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(**config)
        self.speed, self.amplitude, _ = frequencies(config)
        self.model = Trunk(config)
        self.lm_head = linear(config["hidden_size"], config["vocab_size"])

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Any:
        S = input_ids.shape[1]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seen = torch.ones(S, S, dtype=torch.bool).tril() & mask.bool().unsqueeze(1)
        x = self.model.embed_tokens(input_ids)
        angle = position_ids[:, :, None, None] * self.speed
        turn = tuple((f * self.amplitude).to(x.dtype) for f in (angle.cos(), angle.sin()))
        for block in self.model.layers:
            x = block(x, turn, seen)
        logits = self.lm_head(self.model.norm(x))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return types.SimpleNamespace(loss=loss, logits=logits)
