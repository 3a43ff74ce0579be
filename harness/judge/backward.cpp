#include "harness/judge/backward.h"

#include <algorithm>
#include <array>
#include <set>

#include "harness/judge/cancelled.h"
#include "harness/judge/decisions/keys.h"

namespace dsv32::harness {
namespace {

using Names = std::vector<std::string>;
using Slopes = std::map<std::string, HostTensor>;

const std::string kGradient = "grad.";

/// A part of a weight's name, and the taps of its layer that are made with it.
struct WeightUse {
  const char* part;
  std::vector<const char*> taps;
};

/// The first row that fits decides.
const std::vector<WeightUse>& weight_uses() {
  static const std::vector<WeightUse> uses = {
      {".mlp.experts.", {"moe.routed"}},
      {".shared_experts.", {"moe.shared"}},
      {".mlp.gate.weight", {"router.logits"}},
      {".mlp.", {"mlp.out"}},
      {"post_attention_layernorm", {"ffn_norm"}},
      {"input_layernorm", {"attn_norm"}},
      {"indexer.wq_b", {"ix.q"}},
      {"indexer.wk.", {"ix.k"}},
      {"indexer.k_norm", {"ix.k"}},
      {"indexer.weights_proj", {"ix.weights"}},
      {"o_proj", {"attn.out"}},
      {"kv_b_proj", {"attn.ctx", "attn.logits"}},
      {"kv_a_layernorm", {"kv_latent"}},
      {"kv_a_proj", {"kv_latent", "k_rope"}},
      {"q_b_proj", {"q_nope", "q_rope"}},
      {"q_a_", {"q_latent"}},
      {"lm_head", {"logits"}},
      {"model.norm.", {"final_norm"}},
      {"embed_tokens", {"embed"}},
  };
  return uses;
}

Names ops_of_weight(const std::string& gradient) {
  const std::optional<TapName> tap = parse_tap(gradient);
  for (const WeightUse& use : weight_uses()) {
    if (gradient.find(use.part) == std::string::npos) continue;
    Names ops;
    for (const char* name : use.taps)
      ops.push_back(tap->layer ? layer_tap(*tap->layer, name) : std::string(name));
    return ops;
  }
  return {};
}

Names all_taps(const ModelConfig& config, const Objective& objective) {
  Names names = forward_taps(config);
  for (std::string& name : kl_taps(config, objective)) names.push_back(std::move(name));
  return names;
}

/// Made beside the way to the objective: no gradient comes back from them.
bool is_aside(const TapName& tap) {
  const std::string_view name = tap.info.name;
  return tap.info.is_decision() || name == "kl.target" || name == "kl.student" ||
         name == "kl.dscores";
}

/// The taps whose ops read this one and hand a gradient back to it, in back-propagation order.
Names readers(const std::string& tap, const ModelConfig& config, const Objective& objective) {
  Names found;
  for (const std::string& name : all_taps(config, objective)) {
    const TapName reader = *parse_tap(name);
    if (is_aside(reader)) continue;
    const Names inputs = tap_inputs(reader, config);
    if (std::find(inputs.begin(), inputs.end(), tap) != inputs.end()) found.push_back(name);
  }
  std::reverse(found.begin(), found.end());
  return found;
}

class Sources {
 public:
  Sources(const ModelConfig& config, const Objective& objective, const Slopes& held)
      : config_(config), objective_(objective), held_(held) {}

  void add(const std::string& op, Names through) {
    const bool ends = held_.contains(op) || parse_tap(op)->info.kind == TapKind::scalar;
    const Names next = ends ? Names{} : readers(op, config_, objective_);
    if (next.empty()) {
      const auto same = std::find_if(found.begin(), found.end(),
                                     [&](const GradientSource& s) { return s.op == op; });
      if (same == found.end()) return found.push_back({op, std::move(through)});
      for (std::string& name : through)
        if (std::find(same->through.begin(), same->through.end(), name) == same->through.end())
          same->through.push_back(std::move(name));
      return;
    }
    through.push_back(op);
    for (const std::string& reader : next) add(reader, through);
  }

  std::vector<GradientSource> found;

 private:
  const ModelConfig& config_;
  const Objective& objective_;
  const Slopes& held_;
};

class BackwardJudge {
 public:
  explicit BackwardJudge(const Evidence& e) : e_(e), config_(e.c->config) {}

  std::vector<Verdict> run() {
    Names taps = all_taps(config_, e_.objective);
    std::reverse(taps.begin(), taps.end());
    std::map<std::string, Names> weights;  // by the last of their ops
    for (const std::string& name : gradient_taps(config_, e_.objective))
      if (const Names ops = ops_of_weight(name); !ops.empty()) weights[ops.back()].push_back(name);
    for (const std::string& tap : taps) {
      judge_tap(*parse_tap(tap));
      for (const std::string& name : weights[tap]) judge_weight(*parse_tap(name));
    }
    return std::move(verdicts_);
  }

 private:
  Yardstick yardstick(const std::string& tap) const {
    const auto find = [&](const Trace* run) -> const HostTensor* {
      if (run == nullptr) return nullptr;
      const auto found = run->slopes.find(tap);
      return found == run->slopes.end() ? nullptr : &found->second;
    };
    return {.oracle = find(e_.staged.oracle),
            .reference = find(e_.staged.reference),
            .probe = find(e_.staged.probe),
            .twin = find(e_.staged.twin)};
  }

  Comparison comparison(const TapName& tap) const {
    Comparison c;
    c.subject = e_.subject;
    c.config = &config_;
    c.batch = e_.batch;
    c.tap = tap;
    c.mode = Mode::staged;
    c.dtype = e_.dtype;
    c.pieces = pieces_of(e_, tap.full);
    c.summands = summands_of(e_.sums, tap.full);
    return c;
  }

  void judge_tap(TapName tap) {
    const auto slope = e_.judged->slopes.find(tap.full);
    if (slope == e_.judged->slopes.end() || tap.info.kind == TapKind::scalar) return;
    const std::string name = tap.full;
    tap.full = slope_name(name);
    Comparison c = comparison(tap);
    c.judged = &slope->second;
    c.yardstick = yardstick(name);
    if (c.yardstick.oracle == nullptr) return expect_zero(c);
    std::vector<uint8_t> support;
    if (tap.info.kind == TapKind::attention) {
      const std::string topk = layer_tap(*tap.layer, "topk");
      const HostTensor* own = e_.judged->find(topk);
      support =
          attended_keys(config_, *e_.batch, own != nullptr ? own : e_.staged.oracle->find(topk));
      c.support = &support;
    }
    verdicts_.push_back(compare_values(c));
  }

  /// No path leads from this tap to the objective.
  void expect_zero(const Comparison& c) {
    Verdict verdict = open_verdict(c);
    int64_t wrong = 0;
    for (int64_t i = 0; i < c.judged->numel(); ++i) wrong += c.judged->at(i) != 0 ? 1 : 0;
    verdict.checked = c.judged->numel();
    verdict.measures.push_back({"exact", static_cast<double>(wrong), 0,
                                "docs/spec.md 2: the objective does not depend on it"});
    settle(verdict);
    verdicts_.push_back(std::move(verdict));
  }

  void judge_weight(const TapName& tap) {
    Comparison c = comparison(tap);
    c.judged = e_.judged->find(tap.full);
    c.yardstick = e_.staged.of(tap);
    if (c.judged == nullptr || c.yardstick.oracle == nullptr) return;
    if (const auto cancelled = compare_cancelled(c, scale_of(tap))) {
      if (cancelled->trust == Trust::fail) verdicts_.push_back(*cancelled);
      return;  // else there is nothing to be seen
    }
    verdicts_.push_back(compare_values(c));
  }

  double scale_of(const TapName& tap) {
    const int64_t layer = tap.layer.value_or(-1);
    const bool of_expert = tap.full.find(".experts.") != std::string::npos;
    if (!tap.layer || of_expert) return 0;
    const auto [scale, is_new] = scales_.emplace(layer, 0);
    if (is_new)
      scale->second =
          gradient_scale(gradient_taps(config_, e_.objective), *e_.staged.oracle, layer);
    return scale->second;
  }

  const Evidence& e_;
  const ModelConfig& config_;
  std::map<int64_t, double> scales_;
  std::vector<Verdict> verdicts_;
};

}  // namespace

std::vector<Verdict> judge_backward(const Evidence& evidence) {
  const bool asked = !evidence.judged->slopes.empty() && evidence.staged.oracle != nullptr &&
                     !evidence.staged.oracle->slopes.empty();
  return asked ? BackwardJudge(evidence).run() : std::vector<Verdict>{};
}

Verdict judge_slope(const Evidence& evidence, const std::string& tap, const HostTensor& judged,
                    const Yardstick& yardstick) {
  TapName name = *parse_tap(tap);
  name.full = slope_name(tap);
  Comparison c;
  c.subject = evidence.subject;
  c.config = &evidence.c->config;
  c.batch = evidence.batch;
  c.tap = name;
  c.mode = Mode::forced;
  c.dtype = evidence.dtype;
  c.judged = &judged;
  c.yardstick = yardstick;
  return compare_values(c);
}

std::vector<GradientSource> gradient_sources(const std::string& check, const ModelConfig& config,
                                             const Objective& objective, const Slopes& held) {
  Sources sources(config, objective, held);
  const std::optional<TapName> tap = parse_slope(check);
  const Names ops = tap                            ? readers(tap->full, config, objective)
                    : check.starts_with(kGradient) ? ops_of_weight(check)
                                                   : Names{};
  for (const std::string& op : ops) sources.add(op, {});
  return std::move(sources.found);
}

}  // namespace dsv32::harness
