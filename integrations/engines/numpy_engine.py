"""DeepSeek-V3.2 in plain numpy, written from docs/spec.md alone, and judged with the trace kit.

    python integrations/engines/numpy_engine.py ckpt/ mine.safetensors
    dsv32-verify --candidate mine.safetensors

A stranger's engine has its own code in place of `forward`; what remains is `main`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "golden" / "dump"))
import dsv32_trace as kit


def rms(x, w):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-6)) * w


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rotate(x, cos, sin, half):
    """Pairs (2i, 2i + 1), or (i, i + d/2) where half."""
    d = x.shape[-1]
    a, b = (x[..., : d // 2], x[..., d // 2 :]) if half else (x[..., 0::2], x[..., 1::2])
    pair = a * cos - b * sin, b * cos + a * sin
    return np.concatenate(pair, -1) if half else np.stack(pair, -1).reshape(x.shape)


def top(scores, count):
    return np.argsort(-scores, axis=-1, kind="stable")[..., :count]


def swiglu(w, prefix, x):
    gate = x @ w[prefix + "gate_proj.weight"].T
    return (gate * sigmoid(gate) * (x @ w[prefix + "up_proj.weight"].T)) @ w[
        prefix + "down_proj.weight"
    ].T


def attention(w, at, x, turn, seen, c, put):
    B, S, H, heads = *x.shape[:2], c["num_attention_heads"], c["index_n_heads"]
    nope, rope, kv = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["kv_lora_rank"]
    latent = rms(x @ w[at + "q_a_proj.weight"].T, w[at + "q_a_layernorm.weight"])
    q = (latent @ w[at + "q_b_proj.weight"].T).reshape(B, S, H, -1)
    down = x @ w[at + "kv_a_proj_with_mqa.weight"].T
    kv_latent = rms(down[..., :kv], w[at + "kv_a_layernorm.weight"])
    q_rope, k_rope = (rotate(v, *turn, half=False) for v in (q[..., nope:], down[..., None, kv:]))
    up = (kv_latent @ w[at + "kv_b_proj.weight"].T).reshape(B, S, H, -1)

    iq = (latent @ w[at + "indexer.wq_b.weight"].T).reshape(B, S, heads, -1)
    ik = x @ w[at + "indexer.wk.weight"].T
    ik = ik - ik.mean(-1, keepdims=True)
    ik = ik / np.sqrt((ik * ik).mean(-1, keepdims=True) + np.float32(1e-6))
    ik = (ik * w[at + "indexer.k_norm.weight"] + w[at + "indexer.k_norm.bias"])[:, :, None]
    iq, ik = (
        np.concatenate((rotate(v[..., :rope], *turn, half=True), v[..., rope:]), -1)
        for v in (iq, ik)
    )
    iw = x @ w[at + "indexer.weights_proj.weight"].T * np.float32((heads * iq.shape[-1]) ** -0.5)
    dots = np.maximum(np.einsum("bshd,btd->bhst", iq, ik[:, :, 0]), 0)
    scores = np.where(seen, np.einsum("bsh,bhst->bst", iw, dots), -np.inf)
    allowed = np.zeros_like(seen)
    np.put_along_axis(allowed, top(scores, c["index_topk"]), True, -1)
    allowed &= seen

    logits = np.einsum("bshd,bthd->bhst", q[..., :nope], up[..., :nope])
    logits = logits + np.einsum("bshd,btd->bhst", q_rope, k_rope[:, :, 0])
    logits = logits * np.float32((nope + rope) ** -0.5)
    masked = np.where(allowed[:, None], logits, -np.inf)
    probs = softmax(np.where(allowed.any(-1)[:, None, :, None], masked, 0)) * allowed[:, None]
    ctx = np.einsum("bhst,bthd->bshd", probs, up[..., nope:])
    out = ctx.reshape(B, S, -1) @ w[at + "o_proj.weight"].T
    for name, value in {
        "q_latent": latent, "kv_latent": kv_latent, "q_nope": q[..., :nope], "q_rope": q_rope,
        "k_rope": k_rope[:, :, 0], "ix.q": iq, "ix.k": ik[:, :, 0], "ix.weights": iw,
        "ix.scores": scores, "topk": allowed, "attn.logits": logits, "attn.probs": probs,
        "attn.ctx": ctx, "attn.out": out,
    }.items():  # fmt: skip
        put(name, value)
    return out


def experts(w, at, x, c, put):
    z = x @ w[at + "gate.weight"].T
    affinity = sigmoid(z)
    biased = affinity + w[at + "gate.e_score_correction_bias"]
    groups = biased.reshape(*biased.shape[:-1], c["n_group"], -1)
    best = top(np.sort(groups, -1)[..., -2:].sum(-1), c["topk_group"])
    kept = np.zeros(groups.shape[:-1], bool)
    np.put_along_axis(kept, best, True, -1)
    biased = np.where(kept[..., None], groups, -np.inf).reshape(biased.shape)
    chosen = np.sort(top(biased, c["num_experts_per_tok"]), -1)
    weight = np.take_along_axis(affinity, chosen, -1)
    weight = weight / weight.sum(-1, keepdims=True) * np.float32(c["routed_scaling_factor"])
    routed = np.zeros_like(x)
    for e in range(c["n_routed_experts"]):
        b, s, k = np.nonzero(chosen == e)
        routed[b, s] += swiglu(w, f"{at}experts.{e}.", x[b, s]) * weight[b, s, k, None]
    shared = swiglu(w, at + "shared_experts.", x)
    for name, value in {
        "router.logits": z, "router.experts": chosen, "router.weights": weight,
        "moe.routed": routed, "moe.shared": shared,
    }.items():  # fmt: skip
        put(name, value)
    return routed + shared


def forward(w, c, ids, positions, mask, put):
    """Logits [B, S, vocab]; w: weights by checkpoint name, c: config, put: takes the taps."""
    rope = c["qk_rope_head_dim"]
    speed = c["rope_theta"] ** (-2 * np.arange(rope // 2) / rope)  # YaRN is left out here
    angle = positions[:, :, None, None] * speed
    turn = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    mask = np.ones_like(ids) if mask is None else mask
    seen = np.tril(np.ones((ids.shape[1],) * 2, bool)) & (mask[:, None, :] == 1)
    h = w["model.embed_tokens.weight"][ids]
    put("embed", h)
    for n in range(c["num_hidden_layers"]):
        at, tap = f"model.layers.{n}.", lambda name, value, n=n: put(f"layers.{n}.{name}", value)
        x = rms(h, w[at + "input_layernorm.weight"])
        tap("attn_norm", x)
        h = h + attention(w, at + "self_attn.", x, turn, seen, c, tap)
        x = rms(h, w[at + "post_attention_layernorm.weight"])
        tap("ffn_norm", x)
        dense = n < c["first_k_dense_replace"]
        out = swiglu(w, at + "mlp.", x) if dense else experts(w, at + "mlp.", x, c, tap)
        tap("mlp.out", out)
        h = h + out
        tap("hidden", h)
    x = rms(h, w["model.norm.weight"])
    put("final_norm", x)
    return x @ w["lm_head.weight"].T


def trace_of(checkpoint):
    """The engine's taps in the case of a folder of `weights make`."""
    case = kit.open_case(checkpoint)
    trace = kit.Trace(case, engine="numpy_engine")
    weights = dict(case.weights())
    tokens = case.input_ids, case.position_ids, case.attention_mask
    trace.put("logits", forward(weights, case.config, *tokens, put=trace.put))
    trace.compare_weights(weights)
    return trace


def main(checkpoint: str, out: str) -> None:
    trace_of(checkpoint).write(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
