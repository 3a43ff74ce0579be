# ruff: noqa: E501 -- lines of another project
"""Wrong backward passes behind a right forward pass, edited into real transformers as planted_bugs.py.

`tap`: the op that must be named.
"""

from __future__ import annotations

from planted_bugs import ATTENTION_RESIDUAL, SHARED, Bug, Edit


def backward(label: str, op: str, words: str, *edits: Edit, attn: str = "default") -> Bug:
    return Bug(label, edits, tap=op, words=words, slopes=True, attn=attn)


RSQRT = "torch.rsqrt(variance + self.variance_epsilon)"
ATTENTION_OUT = "attn_output = self.o_proj(attn_output)\n"
MLP_OUT = "hidden_states = self.mlp(hidden_states)\n"
SOFTMAX = "attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)"
Q_EMBED = "q_embed = torch.cat([q1 * cos - q2 * sin, q2 * cos + q1 * sin], dim=-1)"
DOWN = "nn.functional.linear(current_hidden_states, self.down_proj[expert_idx])"
SECOND_RESIDUAL = "        hidden_states = self.mlp(hidden_states)\n        hidden_states = residual + hidden_states"

# A right forward pass with a wrong backward pass: `tap` is the op that must be named.
BACKWARD = (
    backward(
        "norm without the variance term",
        "q_latent",
        "hands to layers.1.attn_norm",
        (
            RSQRT,
            "torch.rsqrt((variance.detach() if hidden_states.shape[-1] == 32 else variance) + self.variance_epsilon)",
        ),
    ),
    backward(
        "final norm without the variance term",
        "final_norm",
        "hands to layers.1.hidden",
        (
            "hidden_states = self.norm(hidden_states)",
            "self.norm.last = True\n        hidden_states = self.norm(hidden_states)",
        ),
        (
            RSQRT,
            "torch.rsqrt((variance.detach() if hasattr(self, 'last') else variance) + self.variance_epsilon)",
        ),
    ),
    backward(
        "attention output detached",
        "attn.out",
        "nothing arrives at layers.1.attn.out",
        (
            ATTENTION_OUT,
            ATTENTION_OUT
            + "        attn_output = attn_output.detach() if self.layer_idx == 1 else attn_output\n",
        ),
    ),
    backward(
        "router gradient halved",
        "router.weights",
        "hands to layers.1.router.logits (gain 0.5",
        ("router_logits.sigmoid()", "(router_logits / 2 + router_logits.detach() / 2).sigmoid()"),
    ),
    backward(
        "gradient dropped on every seventh token",
        "mlp.out",
        "counted modulo 7, 6",
        (
            "down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))",
            "x = torch.where((torch.arange(x.shape[1]) % 7 == 6)[:, None], x.detach(), x) if self.intermediate_size == self.config.intermediate_size else x\n"
            "        down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))",
        ),
    ),
    backward(
        "softmax without the row sum",
        "attn.probs",
        "hands to layers.1.attn.logits",
        (
            SOFTMAX,
            SOFTMAX
            + "\n    attn_weights = attn_weights.detach() * (1 + module.marked - module.marked.detach())",
        ),
        (
            "    if attention_mask is not None:\n        attn_weights = attn_weights + attention_mask\n",
            "    if attention_mask is not None:\n        attn_weights = attn_weights + attention_mask\n    module.marked = attn_weights.clamp_min(-1e9)\n",
        ),
        attn="eager",
    ),
    backward(
        "RoPE backward in the wrong sense",
        "q_rope",
        "hands to layers.1.q_latent",
        (
            Q_EMBED,
            Q_EMBED
            + "\n    wrong = torch.cat([q1 * cos + q2 * sin, q2 * cos - q1 * sin], dim=-1)\n    q_embed = q_embed.detach() + (wrong - wrong.detach())",
        ),
    ),
    backward(
        "no gradient through the residual stream",
        "attn.out",
        "the residual path around the attention of layer 1",
        (ATTENTION_RESIDUAL, ATTENTION_RESIDUAL.replace("residual +", "residual.detach() +")),
    ),
    backward(
        "latent detached",
        "kv_latent",
        "hands to layers.1.attn_norm is missing",
        ("self.kv_a_layernorm(kv_pass)", "self.kv_a_layernorm(kv_pass.detach())"),
    ),
    backward(
        "expert weights' gradients doubled",
        "moe.routed",
        "gradients x 2: the routed experts",
        (
            DOWN,
            DOWN.replace(
                "self.down_proj[expert_idx]",
                "self.down_proj[expert_idx] * 2 - self.down_proj[expert_idx].detach()",
            ),
        ),
    ),
    backward(
        "shared expert without a gradient",
        "moe.shared",
        "nothing arrives at layers.1.moe.shared",
        (
            SHARED,
            SHARED.replace(
                "self.shared_experts(residuals)", "self.shared_experts(residuals).detach()"
            ),
        ),
    ),
)
