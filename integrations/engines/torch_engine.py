"""A torch model that is not transformers: plain modules, fused weights, no labels, no config class.

    python integrations/engines/torch_engine.py ckpt/ torch.safetensors [--backward]
    dsv32-verify --candidate torch.safetensors

It stands for an engine whose parameters have other shapes and names than the checkpoint's: q_a and
kv_a are one matrix, gate and up are one, the experts of a layer are one tensor [E, in, out], heads
come before tokens, rotated lanes are written de-interleaved. What a hook cannot see is put where it
is made.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "golden" / "dump"))
import dsv32_trace as kit

Put = Callable[..., None]


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Halves (i, i + d/2)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def halved(x: Tensor) -> Tensor:
    """Pairs (2i, 2i + 1) as halves: even lanes, then odd ones."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), -1)


class Attention(nn.Module):
    """MLA with its indexer; `down` is q_a over kv_a."""

    def __init__(self, c: dict) -> None:
        super().__init__()
        self.c, hidden, kv = c, c["hidden_size"], c["kv_lora_rank"]
        H, nope, rope = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"]
        self.down = nn.Linear(hidden, c["q_lora_rank"] + kv + rope, bias=False)
        self.q_norm, self.kv_norm = (nn.RMSNorm(n, 1e-6) for n in (c["q_lora_rank"], kv))
        self.q_up = nn.Linear(c["q_lora_rank"], H * (nope + rope), bias=False)
        self.kv_up = nn.Linear(kv, H * (nope + c["v_head_dim"]), bias=False)
        self.out = nn.Linear(H * c["v_head_dim"], hidden, bias=False)
        width = c["index_n_heads"] * c["index_head_dim"]
        self.ix_q = nn.Linear(c["q_lora_rank"], width, bias=False)
        self.ix_k = nn.Linear(hidden, c["index_head_dim"], bias=False)
        self.ix_norm = nn.LayerNorm(c["index_head_dim"], 1e-6)
        self.ix_w = nn.Linear(hidden, c["index_n_heads"], bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor, put: Put) -> Tensor:
        c, (B, S, _), H = self.c, x.shape, self.c["num_attention_heads"]
        nope, rope = c["qk_nope_head_dim"], c["qk_rope_head_dim"]
        sizes = [c["q_lora_rank"], c["kv_lora_rank"], rope]
        q_down, kv_down, k_rope = self.down(x).split(sizes, -1)
        latent, kv = self.q_norm(q_down), self.kv_norm(kv_down)
        q = self.q_up(latent).view(B, S, H, -1).transpose(1, 2)
        up = self.kv_up(kv).view(B, S, H, -1).transpose(1, 2)
        q_rope = turned(halved(q[..., nope:]), *turn)
        k_rope = turned(halved(k_rope)[:, None], *turn)
        with torch.no_grad():
            allowed = self.choose(x, latent, turn, seen, put)
        logits = q[..., :nope] @ up[..., :nope].mT + q_rope @ k_rope.mT
        logits = logits * (nope + rope) ** -0.5
        masked = logits.masked_fill(~allowed[:, None], torch.finfo(logits.dtype).min)
        probs = masked.softmax(-1) * allowed[:, None]
        ctx = probs @ up[..., nope:]
        out = self.out(ctx.transpose(1, 2).reshape(B, S, -1))
        put("q_latent", latent)
        put("kv_latent", kv)
        put("q_nope", q[..., :nope], axes="b h s d")
        put("q_rope", q_rope, axes="b h s d", lanes="deinterleaved")
        put("k_rope", k_rope, axes="b 1 s d", lanes="deinterleaved")
        put("attn.logits", logits)
        put("attn.probs", probs)
        put("attn.ctx", ctx, axes="b h s d")
        put("attn.out", out)
        return out

    def choose(
        self, x: Tensor, latent: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor, put: Put
    ) -> Tensor:
        c, (B, S, _), rope = self.c, x.shape, self.c["qk_rope_head_dim"]
        q = self.ix_q(latent).view(B, S, -1, c["index_head_dim"]).transpose(1, 2)
        k = self.ix_norm(self.ix_k(x))[:, None]
        q, k = (torch.cat((turned(v[..., :rope], *turn), v[..., rope:]), -1) for v in (q, k))
        weight = self.ix_w(x) * (c["index_n_heads"] * c["index_head_dim"]) ** -0.5
        scores = ((q @ k.mT).relu() * weight.mT[..., None]).sum(1)
        scores = scores.masked_fill(~seen, -math.inf)
        picks = scores.topk(min(c["index_topk"], S)).indices
        put("ix.q", q, axes="b h s d")
        put("ix.k", k, axes="b 1 t d")
        put("ix.weights", weight)
        put("ix.scores", scores)
        allowed = torch.zeros_like(seen).scatter(-1, picks, True) & seen
        put("topk", allowed)
        return allowed


class Ffn(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden, 2 * inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class Experts(nn.Module):
    """Router, routed and shared experts; fused weights are [E, in, out]."""

    def __init__(self, c: dict) -> None:
        super().__init__()
        self.c, E, hidden, inner = (
            c, c["n_routed_experts"], c["hidden_size"], c["moe_intermediate_size"]
        )  # fmt: skip
        self.gate = nn.Linear(hidden, E, bias=False)
        self.register_buffer("bias", torch.zeros(E))
        self.gate_up_proj = nn.Parameter(torch.zeros(E, hidden, 2 * inner))
        self.down_proj = nn.Parameter(torch.zeros(E, inner, hidden))
        self.shared_experts = Ffn(hidden, inner * c["n_shared_experts"])

    def forward(self, x: Tensor, put: Put) -> Tensor:
        c, flat = self.c, x.flatten(0, 1)
        z = self.gate(flat)
        affinity = z.sigmoid()
        groups = (affinity + self.bias).unflatten(-1, (c["n_group"], -1))
        best = groups.topk(2).values.sum(-1).topk(c["topk_group"]).indices
        kept = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter(-1, best, True)
        wanted = groups.masked_fill(~kept[..., None], -math.inf).flatten(1)
        chosen = wanted.topk(c["num_experts_per_tok"]).indices
        weight = affinity.gather(-1, chosen)
        weight = weight / weight.sum(-1, keepdim=True) * c["routed_scaling_factor"]
        routed = torch.zeros_like(flat)
        for e in range(c["n_routed_experts"]):
            token, place = torch.where(chosen == e)
            gate, up = (flat[token] @ self.gate_up_proj[e]).chunk(2, -1)
            out = (F.silu(gate) * up) @ self.down_proj[e]
            routed = routed.index_add(0, token, out * weight[token, place, None])
        shared = self.shared_experts(flat)
        for name, value in (("logits", z), ("experts", chosen), ("weights", weight)):
            put(f"router.{name}", value, axes="(b s) " + ("d" if name == "logits" else "k"))
        put("moe.routed", routed, axes="(b s) d")
        put("moe.shared", shared, axes="(b s) d")
        return (routed + shared).view_as(x)


class Engine(nn.Module):
    def __init__(self, c: dict) -> None:
        super().__init__()
        self.c, hidden, layers = c, c["hidden_size"], range(c["num_hidden_layers"])
        self.embed = nn.Embedding(c["vocab_size"], hidden)
        self.norms = nn.ModuleList(nn.RMSNorm(hidden, 1e-6) for _ in range(2 * len(layers) + 1))
        self.attention = nn.ModuleList(Attention(c) for _ in layers)
        dense = c["first_k_dense_replace"]
        self.mlp = nn.ModuleList(
            Ffn(hidden, c["intermediate_size"]) if n < dense else Experts(c) for n in layers
        )
        self.head = nn.Linear(hidden, c["vocab_size"], bias=False)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, put: Put) -> Tensor:
        rope, S = self.c["qk_rope_head_dim"], ids.shape[1]
        speed = self.c["rope_theta"] ** (-2 * torch.arange(rope // 2) / rope)  # no YaRN here
        angle = positions[:, None, :, None] * speed  # heads come before tokens
        turn = angle.cos().float(), angle.sin().float()
        seen = torch.ones(S, S, dtype=torch.bool).tril() & mask.bool()[:, None]
        h = self.embed(ids)
        put("embed", h)
        for n, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):

            def tap(name: str, value: Tensor, n: int = n, **how: str) -> None:
                put(f"layers.{n}.{name}", value, **how)

            x = self.norms[2 * n](h)
            tap("attn_norm", x)
            h = h + attention(x, turn, seen, tap)
            x = self.norms[2 * n + 1](h)
            tap("ffn_norm", x)
            out = mlp(x, tap) if isinstance(mlp, Experts) else mlp(x)
            tap("mlp.out", out)
            h = h + out
            tap("hidden", h)
        x = self.norms[-1](h)
        put("final_norm", x)
        return self.head(x)


def pieces(name: str, value: Tensor, c: dict) -> list[tuple[str, Tensor]]:
    """A parameter of the engine (or its gradient) as checkpoint tensors, experts still fused."""
    part, _, rest = name.partition(".")
    if part in ("embed", "head"):
        return [({"embed": "model.embed_tokens.", "head": "lm_head."}[part] + rest, value)]
    number, _, rest = rest.partition(".")
    if part == "norms":
        layer, which = divmod(int(number), 2)
        norm = ("input_layernorm", "post_attention_layernorm")[which]
        last = layer == c["num_hidden_layers"]
        return [("model.norm.weight" if last else f"model.layers.{layer}.{norm}.weight", value)]
    at = f"model.layers.{number}."
    if part == "mlp":
        fused = rest in ("gate_up_proj", "down_proj")
        rest = f"experts.{rest}" if fused else rest.replace("bias", "gate.e_score_correction_bias")
        return [(at + "mlp." + rest, value)]
    if rest == "down.weight":
        rows = c["q_lora_rank"]
        names = ("q_a_proj.weight", "kv_a_proj_with_mqa.weight")
        parts = zip(names, (value[:rows], value[rows:]), strict=True)
        return [(at + "self_attn." + n, v) for n, v in parts]
    names = {"q_norm": "q_a_layernorm", "kv_norm": "kv_a_layernorm", "q_up": "q_b_proj",
             "kv_up": "kv_b_proj", "out": "o_proj", "ix_q": "indexer.wq_b", "ix_k": "indexer.wk",
             "ix_norm": "indexer.k_norm", "ix_w": "indexer.weights_proj"}  # fmt: skip
    module, _, leaf = rest.partition(".")
    return [(f"{at}self_attn.{names[module]}.{leaf}", value)]


def load(engine: Engine, case: kit.CaseData) -> None:
    """Every parameter and buffer from the case's weights: views of it are filled in place."""
    hidden = case.config["hidden_size"]
    with torch.no_grad():
        for name, value in engine.state_dict(keep_vars=True).items():
            for whole, part in pieces(name, value.data, case.config):
                transposed = part.dim() == 3
                for leaf, view in kit.unfused(whole, part, hidden, transposed):
                    view.copy_(torch.from_numpy(case.weight(leaf)))


def trace_of(checkpoint: Path, backward: bool) -> kit.Trace:
    """The engine's taps, with gradients if asked for, in the case of a folder of `weights make`."""
    case = kit.open_case(checkpoint)
    engine = Engine(case.config)
    load(engine, case)
    mode = "backward" if backward else "forward"
    trace = kit.Trace(case, mode, engine=f"torch_engine, torch {torch.__version__}")
    ids, positions, labels = map(torch.from_numpy, (case.input_ids, case.position_ids, case.labels))
    mask = torch.from_numpy(case.batch["attention_mask"])
    logits = engine(ids, positions, mask, trace.put)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    trace.put("logits", logits)
    trace.put("loss.lm", loss)
    if backward:
        loss.backward()
        for name, parameter in engine.named_parameters():
            if parameter.grad is not None:  # none: the indexer's
                for whole, part in pieces(name, parameter.grad, case.config):
                    axes = "e i o" if part.dim() == 3 else None
                    trace.put_gradient(whole, part, axes=axes)
    return trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backward", action="store_true")
    words = parser.parse_args()
    trace_of(words.checkpoint, words.backward).write(words.out)


if __name__ == "__main__":
    main()
