#include "harness/cases/toggles.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "src/model/trace.h"

namespace dsv32::harness {
namespace {

using Stems = std::vector<std::string>;

bool contains(const Stems& stems, const std::string& stem) {
  return std::find(stems.begin(), stems.end(), stem) != stems.end();
}

std::string text_of(double eps) {
  char text[32];
  std::snprintf(text, sizeof text, "%.0e", eps);
  return text;
}

/// One norm, the field of its eps and the name of its known bug.
struct Norm {
  std::string name, tap, words;
  double NormVariant::*eps;
};

const std::vector<Norm>& norms() {
  static const std::vector<Norm> all = {
      {"eps-attn-norm", "attn_norm", "the norm before the attention", &NormVariant::eps_attn_norm},
      {"eps-q-latent", "q_latent", "the norm of the query latent", &NormVariant::eps_q_latent},
      {"eps-kv-latent", "kv_latent", "the norm of the key-value latent",
       &NormVariant::eps_kv_latent},
      {"eps-ffn-norm", "ffn_norm", "the norm before the MLP", &NormVariant::eps_ffn_norm},
      {"eps-final-norm", "final_norm", "the final norm", &NormVariant::eps_final},
  };
  return all;
}

/// Values that frameworks have as defaults. 1e-5 is in the catalogue.
constexpr double kEps[] = {1e-6, 1e-8, 1e-12};

constexpr double kWeightEps = 1e-8;

void add_eps(const ModelConfig& config, std::vector<Toggle>& toggles) {
  for (const double eps : kEps) {
    for (const Norm& norm : norms()) {
      if (eps == config.rms_norm_eps) continue;
      const auto field = norm.eps;
      toggles.push_back({norm.name + "-" + text_of(eps),
                         "eps " + text_of(eps) + " in " + norm.words,
                         [field, eps](Dialect& d) { d.norm.*field = eps; },
                         norm.tap,
                         {norm.tap}});
    }
    if (eps == IndexerVariant{}.eps_k_norm) continue;
    toggles.push_back({"k-norm-eps-" + text_of(eps),
                       "k_norm with eps " + text_of(eps),
                       [eps](Dialect& d) { d.indexer.eps_k_norm = eps; },
                       "ix.k",
                       {"ix.k"}});
  }
}

/// Public variants that show in few configs, so that no case of ours holds them.
void add_parts(const ModelConfig& config, std::vector<Toggle>& toggles) {
  const auto add = [&](std::string name, std::string words, std::string tap,
                       std::function<void(Dialect&)> plant) {
    toggles.push_back({std::move(name), std::move(words), std::move(plant), std::move(tap)});
  };
  if (config.rope_theta != 10000)
    add("theta-10000", "RoPE with theta 10000, not the config's", "q_rope",
        [](Dialect& d) { d.rope.default_theta = true; });
  add("group-score-share", "group score is the sum of the best num_experts_per_tok / topk_group",
      "router.experts", [](Dialect& d) { d.router.group_score = GroupScore::share; });
  add("bias-bfloat16", "correction bias rounded to bfloat16", "router.experts",
      [](Dialect& d) { d.router.bias_in_bfloat16 = true; });
  add("weight-eps-missing", "no eps in the normalisation of the expert weights", "router.weights",
      [](Dialect& d) { d.router.norm_eps = 0; });
  add("weight-eps-" + text_of(kWeightEps),
      "eps " + text_of(kWeightEps) + " in the normalisation of the expert weights",
      "router.weights", [](Dialect& d) { d.router.norm_eps = kWeightEps; });
}

/// Place in the vocabulary of the layers; gradients come last.
size_t order_of(const std::string& stem) {
  const auto& all = tap_vocabulary();
  return std::find_if(all.begin(), all.end(),
                      [&](const TapInfo& info) { return info.name == stem; }) -
         all.begin();
}

bool is_shown_by(const KnownBug& bug, const Objective& objective) {
  return bug.objective.kl == KlStage::none || objective.kl != KlStage::none;
}

}  // namespace

std::vector<Toggle> toggles_for(const ModelConfig& config, const Objective& objective,
                                DType dtype) {
  std::vector<Toggle> toggles;
  for (const KnownBug& bug : known_bugs()) {
    if (!is_shown_by(bug, objective)) continue;
    Toggle toggle{bug.name, bug.description, bug.plant, bug.first_tap};
    const bool of_one_norm = std::any_of(norms().begin(), norms().end(),
                                         [&](const Norm& norm) { return norm.name == bug.name; });
    if (of_one_norm || bug.name == "k-norm-eps") toggle.taps = {bug.first_tap};
    if (bug.name == "silu-missing") toggle.taps = {"moe.routed", "moe.shared", "mlp.out"};
    if (bug.name == "norm-weight-plus-one" || bug.name == "norm-subtracts-mean")
      toggle.taps = {"attn_norm", "q_latent", "kv_latent", "ffn_norm", "final_norm"};
    toggles.push_back(std::move(toggle));
  }
  if (is_narrow(dtype))
    for (const KnownBug& bug : fp8_toggles())
      toggles.push_back({bug.name, bug.description, bug.plant});
  add_parts(config, toggles);
  add_eps(config, toggles);
  return toggles;
}

/// The ops whose products two variants compute otherwise.
Stems products_of(ProductOf a, ProductOf b) {
  const auto either = [&](ProductOf kind) { return a == kind || b == kind; };
  const bool one = a == ProductOf::everything || b == ProductOf::everything || a == b;
  // The right variant is one of everything, with exact operands.
  if (one && either(ProductOf::router)) return {"router.logits"};
  if (one && either(ProductOf::index_scores)) return {"ix.scores"};
  return {"q_latent",      "kv_latent",  "q_nope",     "q_rope",      "k_rope",   "ix.q",
          "ix.k",          "ix.weights", "ix.scores",  "attn.logits", "attn.ctx", "attn.out",
          "router.logits", "moe.routed", "moe.shared", "mlp.out",     "logits"};
}

/// The ops that two variants quantise otherwise.
Stems quantised_ops(const Fp8Variant& a, const Fp8Variant& b) {
  const auto codes = [](const Fp8Variant& v) {
    return std::array{v.plain_scale, v.scale_below, v.half_runs};
  };
  const auto of_layers = [&](const Fp8Variant& v) { return std::array{v.linear, v.input_exact}; };
  const auto of_scores = [&](const Fp8Variant& v) { return std::array{v.indexer, v.unrotated}; };
  const bool all = codes(a) != codes(b);
  Stems stems;
  if (all || a.latent != b.latent) stems.push_back("kv_latent");
  if (all || of_scores(a) != of_scores(b)) stems.push_back("ix.scores");
  if (all || of_layers(a) != of_layers(b))
    stems.insert(stems.end(),
                 {"q_latent", "kv_latent", "q_nope", "q_rope", "k_rope", "ix.q", "ix.k",
                  "attn.logits", "attn.ctx", "attn.out", "moe.routed", "moe.shared", "mlp.out"});
  return stems;
}

std::vector<std::string> changed_ops(const Dialect& a, const Dialect& b) {
  Stems stems;
  const auto add = [&](bool changed, const Stems& ops) {
    if (changed) stems.insert(stems.end(), ops.begin(), ops.end());
  };
  const Stems kl = {"kl.target", "kl.student", "kl.rows", "kl.dscores", "loss.kl"};
  add(!(a.norm == b.norm), {"attn_norm", "q_latent", "kv_latent", "ffn_norm", "final_norm"});
  add(!(a.rope == b.rope), {"q_rope", "k_rope", "ix.q", "ix.k"});
  add(!(a.indexer == b.indexer), {"ix.q", "ix.k", "ix.weights", "ix.scores", "attn.logits"});
  add(!(a.selection == b.selection), {"ix.scores", "topk", "attn.probs", "kl.student", "kl.rows"});
  add(!(a.cache == b.cache), {"ix.scores", "attn.logits", "attn.ctx"});
  add(!(a.attention == b.attention),
      {"attn.logits", "attn.probs", "kl.student", "kl.rows", "kl.dscores"});
  add(a.attention.kv_b_blocks != b.attention.kv_b_blocks, {"attn.ctx"});
  add(a.attention.q_b_rope_first != b.attention.q_b_rope_first, {"q_nope", "q_rope"});
  add(!(a.router == b.router), {"router.experts", "router.weights"});
  add(!(a.moe == b.moe), {"moe.routed", "moe.shared", "mlp.out"});
  add(!(a.residual == b.residual), {"attn_norm", "ffn_norm", "hidden"});
  if (!(a.linear == b.linear)) add(true, products_of(a.linear.where, b.linear.where));
  if (!(a.fp8 == b.fp8)) add(true, quantised_ops(a.fp8, b.fp8));
  add(!(a.loss == b.loss), {"loss.lm"});
  add(!(a.kl == b.kl), kl);
  return stems;
}

bool touches(const Toggle& toggle, const std::string& stem) {
  if (!toggle.taps.empty()) return contains(toggle.taps, stem);
  if (!toggle.first_tap.empty() && order_of(stem) < order_of(toggle.first_tap)) return false;
  return contains(changed_ops({}, toggle.planted({})), stem);
}

}  // namespace dsv32::harness
