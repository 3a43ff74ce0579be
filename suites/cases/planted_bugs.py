# ruff: noqa: E501 -- lines of another project
"""Bugs to plant in the source text of real transformers' deepseek_v32, one edit of it each.

`name`: of the catalogue, to be named first and alone. `tap`: of a bug that the catalogue does not
have: the op that must be named as the place, without a name.
"""

from __future__ import annotations

import dataclasses

Edit = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Bug:
    label: str
    edits: tuple[Edit, ...]
    name: str = ""
    tap: str = ""
    words: str = ""  # that must stand in what is said of it
    case: str = "tiny-wide"
    dialect: str = ""
    slopes: bool = False  # the trace holds the gradients by taps
    attn: str = "default"


def known(name: str, *edits: Edit, case: str = "tiny-wide", dialect: str = "") -> Bug:
    return Bug(name, edits, name, case=case, dialect=dialect)


def unknown(label: str, tap: str, *edits: Edit, words: str = "", attn: str = "default") -> Bug:
    return Bug(label, edits, tap=tap, words=words, attn=attn)


K_NORM = "self.k_norm = nn.LayerNorm(self.head_dim, eps=1e-6)"
K = "k = self.k_norm(self.wk(hidden_states)).unsqueeze(2)"
SCALE = "yarn_apply_mscale(config.rope_parameters, self.qk_head_dim ** (-0.5))"
ROPE = "q_rot, k_rot = apply_rotary_pos_emb_interleave(q_rot, k_rot, cos, sin)"
INDEX_ROPE = "q_rot, k_rot = apply_rotary_pos_emb(q_rot, k_rot, cos, sin, unsqueeze_dim=2)"
SUM = "index_scores = torch.matmul(weights.unsqueeze(-2), scores).squeeze(-2)"
BOOL_MASK = 'index_scores = index_scores.masked_fill(~attention_mask, float("-inf"))'
ADDED_MASK = "index_scores = index_scores + attention_mask\n"
HEADS = "self.weights_proj(hidden_states.to(self.weights_proj.weight.dtype)).float()"
GATHER = "topk_weights = scores.gather(1, topk_indices)"
FILL = 'scores_for_choice.masked_fill(~score_mask.bool(), float("-inf"))'
GROUP = ".topk(2, dim=-1)[0]"
SHARED = "hidden_states = hidden_states + self.shared_experts(residuals)"
SCALED = "topk_weights = topk_weights * self.routed_scaling_factor"
MLP = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
EXPERT = "current_hidden_states = self.act_fn(gate) * up"
LOSS = "loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)"
EXPERT_OUT = "current_hidden_states = current_hidden_states * top_k_weights[token_idx, top_k_pos, None]"
EXPERT_WEIGHTS = "current_hidden_states = nn.functional.linear(current_hidden_states, self.down_proj[expert_idx])"
LOGITS = "logits = self.lm_head(hidden_states)"
MASKED_LOGITS = "attn_weights = attn_weights + attention_mask\n"
SOFTMAX = "attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)"
TOPK = "topk = min(self.index_topk, index_scores.shape[-1])"
OUT = "attn_output = attn_output.reshape(batch_size, seq_length, -1).contiguous()"
ATTENTION_RESIDUAL = "hidden_states = residual + hidden_states\n\n        # Fully Connected"

KNOWN = (
    known("k-norm-eps", (K_NORM, K_NORM.replace("1e-6", "1e-5"))),
    known("eps-q-latent", ("(self.q_lora_rank)\n        self.q_b", "(self.q_lora_rank, 1e-5)\n        self.q_b")),
    known("eps-kv-latent", ("DeepseekV32RMSNorm(config.kv_lora_rank)", "DeepseekV32RMSNorm(config.kv_lora_rank, 1e-5)")),
    known("eps-attn-norm", ("input_layernorm = DeepseekV32RMSNorm(config.hidden_size, config.rms_norm_eps)", "input_layernorm = DeepseekV32RMSNorm(config.hidden_size, 1e-5)")),
    known("eps-ffn-norm", ("post_attention_layernorm = DeepseekV32RMSNorm(config.hidden_size, config.rms_norm_eps)", "post_attention_layernorm = DeepseekV32RMSNorm(config.hidden_size, 1e-5)")),
    known("eps-final-norm", ("eps=config.rms_norm_eps)\n        self.rotary", "eps=1e-5)\n        self.rotary")),
    known("relu-missing", ("scores = F.relu(scores)", "pass")),
    known("relu-after-sum", ("scores = F.relu(scores)", "pass"), (SUM, SUM + ".relu()")),
    known("relu-after-weight", ("scores = F.relu(scores)", "pass"), (SUM, "index_scores = F.relu(weights.unsqueeze(-1) * scores).sum(-2)")),
    known("k-norm-bias-missing", (K, "k = F.layer_norm(self.wk(hidden_states), (self.head_dim,), self.k_norm.weight, None, 1e-6).unsqueeze(2)")),
    known("k-norm-missing", (K, "k = self.wk(hidden_states).unsqueeze(2)")),
    known("indexer-rope-missing", (INDEX_ROPE, "pass")),
    known("indexer-rope-reversed", (INDEX_ROPE, INDEX_ROPE.replace("sin", "-sin"))),
    known("indexer-rope-interleaved", (INDEX_ROPE, """q_rot, k_rot = apply_rotary_pos_emb_interleave(q_rot, k_rot, cos, sin, unsqueeze_dim=2)
        q_rot, k_rot = (x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) for x in (q_rot, k_rot))""")),
    known("mla-rope-half", (ROPE, ROPE.replace("_interleave", ""))),
    known("q-rope-reversed", ("torch.cat([q1 * cos - q2 * sin, q2 * cos + q1 * sin], dim=-1)", "torch.cat([q1 * cos + q2 * sin, q2 * cos - q1 * sin], dim=-1)")),
    known("position-offset", ("freqs = position_ids[..., None].float()", "freqs = (position_ids[..., None].float() + 1)")),
    known("indexer-nope-first",
          ("q_rot, q_pass = torch.split(q, [self.qk_rope_head_dim, self.head_dim - self.qk_rope_head_dim], dim=-1)", "q_pass, q_rot = torch.split(q, [self.head_dim - self.qk_rope_head_dim, self.qk_rope_head_dim], dim=-1)"),
          ("k_rot, k_pass = torch.split(k, [self.qk_rope_head_dim, self.head_dim - self.qk_rope_head_dim], dim=-1)", "k_pass, k_rot = torch.split(k, [self.head_dim - self.qk_rope_head_dim, self.qk_rope_head_dim], dim=-1)"),
          ("q = torch.cat([q_rot, q_pass], dim=-1)", "q = torch.cat([q_pass, q_rot], dim=-1)"),
          ("k = torch.cat([k_rot, k_pass], dim=-1)", "k = torch.cat([k_pass, k_rot], dim=-1)")),
    known("indexer-raw-q-latent", ("            q_resid,\n            position_embeddings", "            self.q_a_proj(hidden_states),\n            position_embeddings")),
    known("index-scale-heads-missing", (HEADS + " * (self.n_heads**-0.5)", HEADS)),
    known("index-scale-dim-missing", (".unsqueeze(1)) * self.softmax_scale", ".unsqueeze(1))")),
    known("head-weights-sigmoid", (HEADS, HEADS + ".sigmoid()")),
    known("head-weights-one", (SUM, "index_scores = scores.sum(-2) * (self.n_heads**-0.5)")),
    known("mask-missing", (BOOL_MASK, "pass"), (ADDED_MASK, "pass\n")),
    known("indexer-causal-missing", (ADDED_MASK, "index_scores = index_scores + attention_mask[:, -1:, :]\n")),
    known("indexer-mask-added", (ADDED_MASK, "index_scores = index_scores + (attention_mask == 0)\n")),
    known("topk-minus-one", (TOPK, TOPK + " - 1")),
    known("rope-table-bfloat16", ("return cos.to(dtype=x.dtype), sin.to(dtype=x.dtype)", "return cos.bfloat16().to(dtype=x.dtype), sin.bfloat16().to(dtype=x.dtype)")),
    known("rope-angles-bfloat16", ("emb = torch.cat((freqs, freqs), dim=-1)", "emb = torch.cat((freqs, freqs), dim=-1).bfloat16().float()")),
    known("rope-frequencies-bfloat16", ("* self.inv_freq.to(device=x.device, dtype=torch.float)", "* self.inv_freq.bfloat16().float()")),
    known("kv-b-blocks", ("kv_nope = self.kv_b_proj(kv_nope).view(key_shape).transpose(1, 2)", "keys, values = self.kv_b_proj(kv_nope)[:, 0].split([self.num_heads * self.qk_nope_head_dim, self.num_heads * self.v_head_dim], -1)\n        kv_nope = torch.cat([t.unflatten(-1, (self.num_heads, -1)) for t in (keys, values)], -1).transpose(1, 2)")),
    known("q-b-rope-first", ("q_pass, q_rot = torch.split(q_states, [self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)", "q_rot, q_pass = torch.split(q_states, [self.qk_rope_head_dim, self.qk_nope_head_dim], dim=-1)")),
    known("softmax-scale-v", (SCALE, SCALE.replace("qk_head", "v_head")), case="tiny-odd"),
    known("weights-over-all-experts", (GATHER, GATHER + "\n        everyone = scores.sum(dim=-1, keepdim=True)"), ("denominator = topk_weights.sum(dim=-1, keepdim=True) + 1e-20", "denominator = everyone + 1e-20")),
    known("topk-group-minus-one", ("k=self.topk_group", "k=self.topk_group - 1")),
    known("norm-subtracts-mean", ("variance = hidden_states.pow(2).mean(-1, keepdim=True)", "hidden_states = hidden_states - hidden_states.mean(-1, keepdim=True)\n        variance = hidden_states.pow(2).mean(-1, keepdim=True)")),
    known("softmax-scale-nope", (SCALE, SCALE.replace("qk_head", "qk_nope_head"))),
    known("softmax-scale-missing", (SCALE, "1.0")),
    known("mscale-missing", (SCALE, "self.qk_head_dim ** (-0.5)"), case="tiny-yarn", dialect="hf"),
    known("mscale-once", ("scaling = scaling * mscale * mscale", "scaling = scaling * mscale"), case="tiny-yarn", dialect="hf"),
    known("mscale-field", ('mscale_all_dim = rope_parameters.get("mscale_all_dim", 0)', 'mscale_all_dim = rope_parameters.get("mscale", 0)'), case="tiny-yarn", dialect="hf"),
    known("bias-in-weights", (GATHER, GATHER.replace("scores.", "(scores + self.e_score_correction_bias)."))),
    known("bias-not-in-choice", ("scores + self.e_score_correction_bias", "scores + 0")),
    known("group-score-max", (GROUP, GROUP.replace("2", "1"))),
    known("group-fill-zero", (FILL, FILL.replace('float("-inf")', "0.0")), case="tiny-bias"),
    known("group-limit-ignored", (FILL, "scores_for_choice")),
    known("router-softmax", ("router_logits.sigmoid()", "router_logits.softmax(-1)")),
    known("no-weight-normalisation", ("if self.norm_topk_prob:", "if False:")),
    known("routed-scale-twice", (SCALED, SCALED + " * self.routed_scaling_factor")),
    known("routed-scale-missing", (SCALED, "pass")),
    known("shared-expert-scaled", (SHARED, "hidden_states = hidden_states + 2.5 * self.shared_experts(residuals)")),
    known("shared-expert-missing", (SHARED, "pass")),
    known("gate-up-swapped-routed", ("gate, up = nn", "up, gate = nn")),
    known("q-latent-norm-missing", ("q_resid = self.q_a_layernorm(self.q_a_proj(hidden_states))", "q_resid = self.q_a_proj(hidden_states)")),
    known("kv-latent-norm-missing", ("k_pass = self.kv_a_layernorm(kv_pass)", "k_pass = kv_pass")),
    known("residual-from-normed", ("hidden_states = self.input_layernorm(hidden_states)\n", "hidden_states = residual = self.input_layernorm(hidden_states)\n")),
    known("labels-unshifted", (LOSS, "loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())")),
    known("loss-mean-over-all", (LOSS, "loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), reduction='sum') / labels[:, 1:].numel()")),
    known("router-weights-detached", (SCALED, SCALED.replace("topk_weights *", "topk_weights.detach() *"))),
    known("silu-missing-routed", (EXPERT, "current_hidden_states = gate * up")),
    known("index-products-bfloat16", ("scores = torch.matmul(q.float()", "q, k = q.bfloat16(), k.bfloat16()\n        scores = torch.matmul(q.float()")),
    known("embedding-scaled", ("inputs_embeds: torch.Tensor = self.embed_tokens(input_ids)", "inputs_embeds: torch.Tensor = self.embed_tokens(input_ids) * self.config.hidden_size**0.5")),
    known("router-bfloat16", ("F.linear(hidden_states.type(torch.float32), self.weight.type(torch.float32))", "F.linear(hidden_states.bfloat16(), self.weight.bfloat16()).float()")),
    known("norm-weight-plus-one", ("return self.weight * hidden_states.to(input_dtype)", "return (1 + self.weight) * hidden_states.to(input_dtype)")),
)

# The name of a place, never of a bug.
UNKNOWN = (
    unknown("GELU for SiLU in the experts", "moe.routed", (EXPERT, "current_hidden_states = F.gelu(gate) * up")),
    unknown("attention window of 16", "attn.logits", (MASKED_LOGITS, MASKED_LOGITS + "        steps = torch.arange(attn_weights.shape[-1])\n        attn_weights = attn_weights.masked_fill(steps[:, None] - steps >= 16, torch.finfo(torch.float32).min)\n"), words="masked: keys 16 tokens and more behind the query", attn="eager"),
    unknown("key 9 hidden from the indexer", "ix.scores", (ADDED_MASK, ADDED_MASK + "            index_scores[..., 9] = float('-inf')\n"), words="masked: key 9"),
    unknown("softmax with one term more", "attn.probs", (SOFTMAX, "attn_weights = torch.softmax(nn.functional.pad(attn_weights, (0, 1)), -1)[..., :-1]"), words="the rows sum up to", attn="eager"),
    unknown("weights sorted apart from their experts", "router.weights", (GATHER, GATHER + ".sort(-1, descending=True).values"), words="the right values in another order"),
    unknown("logits halved", "logits", (LOGITS, LOGITS + " / 2"), words="gain 0.5"),
    unknown("logits capped at 1", "logits", (LOGITS, LOGITS + "\n        logits = logits.tanh()")),
    unknown("heads in reverse order", "attn.ctx", (OUT, OUT.replace("attn_output.reshape", "attn_output.flip(2).reshape")), words="heads in reverse order"),
    unknown("head 0 lost", "attn.ctx", (OUT, "attn_output = attn_output.clone()\n        attn_output[:, :, 0] = 0\n        " + OUT)),
    unknown("values and nope keys exchanged", "attn.ctx", ("k_nope, value_states = torch.split(kv_nope, [self.qk_nope_head_dim, self.v_head_dim], dim=-1)", "value_states, k_nope = torch.split(kv_nope, [self.qk_nope_head_dim, self.v_head_dim], dim=-1)")),
    unknown("smallest scores selected", "topk", ("index_scores.topk(topk, dim=-1)", "index_scores.topk(topk, dim=-1, largest=False)")),
    unknown("attention residual times 0.9", "ffn_norm", (ATTENTION_RESIDUAL, ATTENTION_RESIDUAL.replace("residual +", "0.9 * residual +"))),
    unknown("experts weighted at their input", "moe.routed", (EXPERT_OUT, "pass"), ("current_state = hidden_states[token_idx]", "current_state = hidden_states[token_idx] * top_k_weights[token_idx, top_k_pos, None]")),
    unknown("expert 3 is expert 2", "moe.routed", (EXPERT_WEIGHTS, EXPERT_WEIGHTS.replace("[expert_idx]", "[2 if expert_idx == 3 else expert_idx]"))),
    unknown("indexer keys of the token before", "ix.scores", ("scores = torch.matmul(q.float()", "k = k.roll(1, 1)\n        scores = torch.matmul(q.float()")),
    unknown("every seventh token skips its MLP", "hidden", ("hidden_states = self.mlp(hidden_states)\n", "hidden_states = self.mlp(hidden_states)\n        hidden_states = torch.where((torch.arange(hidden_states.shape[1]) % 7 == 6)[:, None], 0 * hidden_states, hidden_states)\n")),
    unknown("expert gradients doubled", "grad", ("final_hidden_states.index_add_(0, token_idx, current_hidden_states", "current_hidden_states = current_hidden_states * 2 - current_hidden_states.detach()\n            final_hidden_states.index_add_(0, token_idx, current_hidden_states"), words="x 2: the routed experts"),
)
