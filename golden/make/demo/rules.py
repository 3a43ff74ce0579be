"""docs/spec.md 1 in plain torch, op by op: what each tap has to be, given the taps it reads.

float32 is evaluated exactly (float64, nothing rounded). bf16 and fp8 round to bf16 wherever the
specification says so, with sums in float32. Decisions are always those of the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from synthetic import Case, case_weight, make_batch, weight_specs
from torch import Tensor

from demo.kernels import RUN, hadamard, index_scores, product, quantise, quantise_weight, restore
from demo.model import Mode

UNQUANTISED = ("norm.weight", "norm.bias", "embed_tokens.weight", "lm_head.weight",
               "mlp.gate.weight", "e_score_correction_bias", "weights_proj.weight")  # fmt: skip


class Rules:
    """One case in one mode.

    chained: a tap reads what was computed here, not what the run stored: the whole model then, from
    the embedding on. expanded: rows before this one are computed from keys and values per head, the
    others in the absorbed form.
    """

    def __init__(self, case: Case, mode: Mode, chained: bool, expanded: int) -> None:
        self.case, self.config, self.mode = case, case.config, mode
        self.chained, self.expanded = chained, expanded
        self.low = mode.dtype != "float32"
        self.work = torch.float32 if self.low else torch.float64
        batch = make_batch(case)
        self.ids, mask, positions = (
            torch.from_numpy(batch[name])
            for name in ("input_ids", "attention_mask", "position_ids")
        )
        self.seen = torch.ones(case.S, case.S, dtype=torch.bool).tril() & mask.bool()[:, None]
        self.codes: dict[str, tuple[Tensor, Tensor]] = {}
        self.weights: dict[str, Tensor] = {}
        for name, shape in weight_specs(case.config).items():
            self.open(name, torch.from_numpy(case_weight(case, name, shape)))
        speed, self.scale = rotation(case.config)
        self.angle = positions[:, :, None, None] * speed
        self.stored: dict[str, Tensor] = {}
        self.out: dict[str, Tensor] = {}

    def open(self, name: str, value: Tensor) -> None:
        if self.mode.dtype == "fp8" and not name.endswith(UNQUANTISED):
            codes, scales, value = quantise_weight(value, self.mode.ue8m0)
            self.codes[name] = codes, scales
        self.weights[name] = value.to(self.work)

    def evaluate(self, taps: dict[str, Tensor]) -> dict[str, Tensor]:
        """What every tap of a run should be, in the run's shapes."""
        self.stored, self.out = taps, {}
        stream = self.put("embed", self.weights["model.embed_tokens.weight"][self.ids])
        added: Tensor | None = None
        for layer in range(self.config["num_hidden_layers"]):
            stream, added = self.layer(f"layers.{layer}.", stream, added)
        last = f"layers.{self.config['num_hidden_layers'] - 1}.hidden"
        whole = self.joined(stream, added)
        self.put(last, self.round(whole))
        final = self.put("final_norm", self.norm(whole, "model.norm"))
        self.put("logits", final @ self.weights["lm_head.weight"].T)
        return self.out

    def layer(self, at: str, stream: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        """One block. Returns the residual stream without its last term, and that term."""
        whole = self.joined(stream, added)
        if added is not None:
            before = f"layers.{int(at.split('.')[1]) - 1}.hidden"
            stream = self.put(before, self.round(whole))
        x = self.put(at + "attn_norm", self.norm(whole, f"model.{at}input_layernorm"))
        attended = self.attention(at, x)
        whole = self.joined(stream, attended)
        x = self.put(at + "ffn_norm", self.norm(whole, f"model.{at}post_attention_layernorm"))
        return self.round(whole), self.mlp(at, x)

    def attention(self, at: str, x: Tensor) -> Tensor:
        weight, c = f"model.{at}self_attn.", self.config
        heads, nope, kv_size = c["num_attention_heads"], c["qk_nope_head_dim"], c["kv_lora_rank"]
        down = self.linear(x, weight + "q_a_proj")
        q_latent = self.put(at + "q_latent", self.norm(down, weight + "q_a_layernorm"))
        kv = self.linear(x, weight + "kv_a_proj_with_mqa")
        latent = self.norm(kv[..., :kv_size], weight + "kv_a_layernorm")
        if self.mode.quantised:
            latent = self.round(restore(*quantise(latent, self.mode.ue8m0)))
        latent = self.put(at + "kv_latent", latent)
        q = self.linear(q_latent, weight + "q_b_proj").unflatten(-1, (heads, -1))
        q_nope = self.put(at + "q_nope", q[..., :nope])
        q_rope = self.put(at + "q_rope", self.rotated(q[..., nope:], "pairs"))
        k_rope = self.rotated(kv[:, :, None, kv_size:], "pairs").squeeze(2)
        k_rope = self.put(at + "k_rope", k_rope)
        self.indexer(at, x, q_latent)
        allowed = self.allowed(at)[:, None]
        form = self.expanded_form if self.expanded else self.absorbed_form
        logits, context = form(weight + "kv_b_proj", q_nope, q_rope, latent, k_rope)
        if 0 < self.expanded < self.case.S:
            others = self.absorbed_form(weight + "kv_b_proj", q_nope, q_rope, latent, k_rope)
            logits = torch.cat((logits[:, :, : self.expanded], others[0][:, :, self.expanded :]), 2)
        logits = self.put(at + "attn.logits", logits)
        probs = logits.masked_fill(~allowed, -math.inf).softmax(-1).nan_to_num(0)
        probs = self.put(at + "attn.probs", self.round(probs))
        values = context(probs)
        if 0 < self.expanded < self.case.S:
            rest = others[1](probs)
            values = torch.cat((values[:, : self.expanded], rest[:, self.expanded :]), dim=1)
        values = self.put(at + "attn.ctx", values)
        return self.put(at + "attn.out", self.linear(values.flatten(2), weight + "o_proj"))

    def expanded_form(
        self, name: str, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Scaled logits [B,H,S,T], and probabilities to context [B,S,H,v]."""
        heads, nope = self.config["num_attention_heads"], self.config["qk_nope_head_dim"]
        up = self.linear(latent, name).unflatten(-1, (heads, -1))
        k = torch.cat((up[..., :nope], k_rope[:, :, None].expand(-1, -1, heads, -1)), dim=-1)
        match = torch.einsum("bshd,bthd->bhst", torch.cat((q_nope, q_rope), dim=-1), k)
        logits = self.round(self.round(match) * self.scale)
        return logits, lambda p: self.round(torch.einsum("bhst,bthd->bshd", p, up[..., nope:]))

    def absorbed_form(
        self, name: str, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The same on the latent itself: kv_b as values in bf16, nothing quantised again."""
        heads, nope = self.config["num_attention_heads"], self.config["qk_nope_head_dim"]
        up = self.round(self.weights[name + ".weight"]).unflatten(0, (heads, -1))
        q = self.round(torch.einsum("bshd,hdc->bshc", q_nope, up[:, :nope]))
        match = self.round(torch.einsum("bshc,btc->bhst", q, latent))
        match = self.round(match + self.round(torch.einsum("bshr,btr->bhst", q_rope, k_rope)))

        def context(p: Tensor) -> Tensor:
            mean = self.round(torch.einsum("bhst,btc->bshc", p, latent))
            return self.round(torch.einsum("bshc,hdc->bshd", mean, up[:, nope:]))

        return self.round(match * self.scale), context

    def indexer(self, at: str, x: Tensor, q_latent: Tensor) -> None:
        c, weight = self.config, f"model.{at}self_attn.indexer."
        heads, size, rope = c["index_n_heads"], c["index_head_dim"], c["qk_rope_head_dim"]
        q = self.linear(q_latent, weight + "wq_b").unflatten(-1, (heads, size))
        k = self.linear(x, weight + "wk")
        norm = [self.weights[f"{weight}k_norm.{part}"] for part in ("weight", "bias")]
        k = self.round(F.layer_norm(k, (size,), *norm, 1e-6))[:, :, None]
        turned = []
        for states in (q, k):
            first = self.rotated(states[..., :rope], "halves")
            turned.append(torch.cat((first, states[..., rope:]), dim=-1))
        q = self.put(at + "ix.q", turned[0])
        k = self.put(at + "ix.k", turned[1].squeeze(2))
        w = x @ self.weights[weight + "weights_proj.weight"].T * heads**-0.5
        w = self.put(at + "ix.weights", w * size**-0.5)
        if self.mode.quantised:
            (q, q_scale), (k, k_scale) = (self.rotated_codes(states) for states in (q, k))
            scores = index_scores(q, w * q_scale.squeeze(-1), k, k_scale.squeeze(-1))
        else:
            match = torch.einsum("bshd,btd->bsht", q, k).relu()
            scores = torch.einsum("bsht,bsh->bst", match, w)
        self.put(at + "ix.scores", scores.masked_fill(~self.seen, -math.inf))

    def rotated_codes(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Hadamard, bf16, Q over one run."""
        size = states.shape[-1]
        return quantise(self.round(hadamard(states, size**-0.5)), self.mode.ue8m0, run=size)

    def allowed(self, at: str) -> Tensor:
        """[B,S,T]: the selected keys of the run that a query may see."""
        picks = self.stored[at + "topk"].long()
        chosen = torch.zeros(*picks.shape[:2], self.case.S + 1, dtype=torch.bool)
        chosen.scatter_(-1, torch.where(picks < 0, self.case.S, picks), True)
        return chosen[..., : self.case.S] & self.seen

    def mlp(self, at: str, x: Tensor) -> Tensor:
        weight = f"model.{at}mlp."
        if f"{weight}gate.weight" not in self.weights:
            return self.put(at + "mlp.out", self.swiglu(x, weight))
        logits = self.put(at + "router.logits", x @ self.weights[weight + "gate.weight"].T)
        experts = self.stored[at + "router.experts"].long()
        share = logits.sigmoid().gather(-1, experts)
        share = share / share.sum(-1, keepdim=True) * self.config["routed_scaling_factor"]
        share = self.put(at + "router.weights", share)
        routed = torch.zeros_like(x)
        for expert in range(self.config["n_routed_experts"]):
            b, s, place = torch.where(experts == expert)
            if len(b):
                part = self.swiglu(x[b, s], f"{weight}experts.{expert}.")
                routed[b, s] += part * share[b, s, place, None]
        routed = self.put(at + "moe.routed", routed)
        shared = self.put(at + "moe.shared", self.swiglu(x, weight + "shared_experts."))
        return self.put(at + "mlp.out", self.round(routed + shared))

    def swiglu(self, x: Tensor, weight: str) -> Tensor:
        inner = F.silu(self.linear(x, weight + "gate_proj")) * self.linear(x, weight + "up_proj")
        return self.linear(self.round(inner), weight + "down_proj")

    def put(self, name: str, value: Tensor) -> Tensor:
        """Keeps a tap; returns what later ops read in its place."""
        self.out[name] = value
        return value if self.chained else self.stored[name].to(self.work)

    def round(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).to(self.work) if self.low else x

    def joined(self, stream: Tensor, added: Tensor | None) -> Tensor:
        """The residual sum, not rounded."""
        return stream if added is None else stream + added

    def norm(self, x: Tensor, weight: str) -> Tensor:
        size = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return self.round(self.weights[weight + ".weight"] * (x * size))

    def linear(self, x: Tensor, name: str) -> Tensor:
        name += ".weight"
        if name in self.codes:
            codes, scales = quantise(x, self.mode.ue8m0, RUN)
            return product(codes, scales, *self.codes[name], torch.bfloat16).to(self.work)
        return self.round(x @ self.weights[name].T)

    def rotated(self, x: Tensor, lanes: str) -> Tensor:
        """[B,S,heads,rope], pairs of lanes (2i, 2i+1), or halves (i, i + rope/2)."""
        cos, sin = self.angle.cos().to(self.work), self.angle.sin().to(self.work)
        a, b = x.chunk(2, dim=-1) if lanes == "halves" else (x[..., 0::2], x[..., 1::2])
        parts = a * cos - b * sin, a * sin + b * cos
        turned = torch.cat(parts, -1) if lanes == "halves" else torch.stack(parts, -1).flatten(-2)
        return self.round(turned)


def rotation(config: dict) -> tuple[Tensor, float]:
    """Speed of each pair of lanes [rope/2] in radians per position, float64; the softmax scale."""
    size, base = config["qk_rope_head_dim"], config["rope_theta"]
    pair = torch.arange(size // 2, dtype=torch.float64)
    speed, scale = base ** (-2 * pair / size), (config["qk_nope_head_dim"] + size) ** -0.5
    yarn = config.get("rope_scaling")
    if not yarn:
        return speed, scale

    def place(turns: float) -> float:
        reach = yarn["original_max_position_embeddings"] / (2 * math.pi * turns)
        return size * math.log(reach) / (2 * math.log(base))

    low = max(math.floor(place(yarn["beta_fast"])), 0)
    high = min(math.ceil(place(yarn["beta_slow"])), size - 1)
    ramp = ((pair - low) / (high - low or 0.001)).clamp(0, 1)
    growth = 0.1 * yarn.get("mscale_all_dim", 0) * math.log(yarn["factor"]) + 1
    return speed / yarn["factor"] * ramp + speed * (1 - ramp), scale * growth**2
