#include "harness/judge/judge.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>

#include "harness/judge/cancelled.h"
#include "harness/judge/decisions/decisions.h"
#include "harness/judge/decisions/free.h"
#include "harness/judge/decisions/keys.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/siblings.h"
#include "src/model/check_name.h"
#include "src/model/segment.h"
#include "src/model/sketch.h"
#include "src/model/weights.h"

namespace dsv32::harness {
namespace {

const std::string kGradient = "grad.";

bool all_zero(const HostTensor& tensor) {
  for (int64_t i = 0; i < tensor.numel(); ++i)
    if (tensor.at(i) != 0) return false;
  return true;
}

bool has_nan(const HostTensor& tensor) {
  for (int64_t i = 0; i < tensor.numel(); ++i)
    if (std::isnan(tensor.at(i))) return true;
  return false;
}

bool has_gradients(const Trace* trace) {
  return trace != nullptr &&
         std::any_of(trace->names().begin(), trace->names().end(),
                     [](const std::string& name) { return name.starts_with(kGradient); });
}

std::string bias_name(int64_t layer) {
  return "model.layers." + std::to_string(layer) + ".mlp.gate.e_score_correction_bias";
}

// The tap whose yardstick a tap is measured with.
std::string measured_tap(const TapName& tap) {
  if (tap.info.kind == TapKind::topk) return layer_tap(*tap.layer, "ix.scores");
  if (tap.info.kind == TapKind::experts) return layer_tap(*tap.layer, "router.logits");
  return tap.full;
}

class Judge {
 public:
  explicit Judge(const Evidence& e)
      : e_(e), config_(e.c->config), fed_(e.fed != nullptr ? *e.fed : *e.judged) {}

  std::vector<Verdict> staged() {
    if (e_.staged.oracle == nullptr) return {};
    for (const std::string& name : forward()) {
      judge_staged(*parse_tap(name));
      finish_tap();
    }
    return std::move(verdicts_);
  }

  std::vector<Verdict> selection() {
    judge_selection();
    return std::move(verdicts_);
  }

  std::vector<Verdict> forced() {
    const std::vector<std::string> names = forward();
    find_unreplayed(names);
    for (const std::string& name : names) {
      judge_forced(*parse_tap(name));
      finish_tap();
    }
    return std::move(verdicts_);
  }

  std::vector<Verdict> gradients() {
    judge_gradients();
    return std::move(verdicts_);
  }

  std::vector<Verdict> all(std::vector<Verdict> staged) {
    judge_selection();
    std::move(staged.begin(), staged.end(), std::back_inserter(verdicts_));
    const std::vector<std::string> names = forward();
    if (!anything(names)) return give_up();
    find_unreplayed(names);
    for (const std::string& name : names)
      if (!e_.emitted || present(name)) judge_forced(*parse_tap(name));
    if (e_.emitted) judge_emitted();
    if (has_gradients(e_.forced.oracle)) judge_gradients();
    list_others(names);
    return std::move(verdicts_);
  }

 private:
  // --- what is there ----------------------------------------------------------------------------

  std::vector<std::string> forward() const {
    if (!e_.taps.empty()) return e_.taps;
    std::vector<std::string> names = forward_taps(config_);
    for (std::string& name : kl_taps(config_, e_.objective)) names.push_back(std::move(name));
    return names;
  }

  void finish_tap() const {
    if (e_.after_each_tap) e_.after_each_tap();
  }

  const HostTensor* tensor(const std::string& name) const { return e_.judged->find(name); }

  const TapSketch* sketch(const std::string& name) const {
    const auto& sketches = e_.golden != nullptr ? e_.golden->sketches : e_.judged->sketches;
    const auto found = sketches.find(name);
    return found == sketches.end() ? nullptr : &found->second;
  }

  // Rows without norms and projections, or rows that must be judged one by one: the tap with zeros
  // in the other rows, which count as padding.
  void use_rows(Comparison& c, const TapSketch& sketch) {
    rows_tensor_ = tensor_of_rows(sketch);
    rows_batch_ = *e_.batch;
    std::vector<int64_t>& mask = rows_batch_.attention_mask;
    std::vector<int64_t> there(mask.size(), 0);
    for (const int64_t row : sketch.row_index) there.at(static_cast<size_t>(row)) = mask.at(row);
    mask = there;
    c.judged = &rows_tensor_;
    c.batch = &rows_batch_;
  }

  bool present(const std::string& name) const {
    return tensor(name) != nullptr || sketch(name) != nullptr;
  }

  bool anything(const std::vector<std::string>& forward) const {
    const auto known = [this](const std::string& name) { return present(name); };
    const std::vector<std::string> gradients = gradient_taps(config_, e_.objective);
    return e_.emitted || std::any_of(forward.begin(), forward.end(), known) ||
           std::any_of(gradients.begin(), gradients.end(), known);
  }

  // The tap is in the fed trace, or follows from what is there without a decision that is not.
  bool derivable(const std::string& name) {
    if (fed_.has(name) || is_input(name)) return true;
    const auto known = derivable_.find(name);
    if (known != derivable_.end()) return known->second;
    const TapName tap = *parse_tap(name);
    const bool free_decision = tap.info.is_decision() && decides(tap);
    return derivable_[name] = !free_decision && inputs_derivable(tap);
  }

  // It comes before the judged segment.
  bool is_input(const std::string& name) const {
    return !e_.taps.empty() && std::find(e_.taps.begin(), e_.taps.end(), name) == e_.taps.end();
  }

  bool inputs_derivable(const TapName& tap) {
    const std::vector<std::string> inputs = tap_inputs(tap, config_);
    return std::all_of(inputs.begin(), inputs.end(),
                       [this](const std::string& name) { return derivable(name); });
  }

  bool inputs_there(const TapName& tap) const {
    const std::vector<std::string> inputs = tap_inputs(tap, config_);
    return std::all_of(inputs.begin(), inputs.end(),
                       [this](const std::string& name) { return fed_.has(name); });
  }

  bool decides(const TapName& tap) const {
    return tap.info.kind == TapKind::experts ||
           (tap.info.kind == TapKind::topk && config_.use_sparse_attention);
  }

  // Taps after the first decision that the fed trace does not hold.
  void find_unreplayed(const std::vector<std::string>& forward) {
    bool replayed = true;
    for (const std::string& name : forward) {
      if (!replayed) unreplayed_.insert(name);
      const TapName tap = *parse_tap(name);
      if (tap.info.is_decision() && decides(tap) && !fed_.has(name)) replayed = false;
    }
    all_replayed_ = replayed;
  }

  // --- comparisons ------------------------------------------------------------------------------

  Comparison comparison(const TapName& tap, Mode mode, const Yardsticks& yardsticks) {
    Comparison c;
    c.subject = e_.subject;
    c.config = &config_;
    c.batch = e_.batch;
    c.tap = tap;
    c.mode = mode;
    c.dtype = e_.dtype;
    c.judged = tensor(tap.full);
    c.excluded_experts_at_zero = e_.excluded_experts_at_zero;
    c.yardstick = yardsticks.of(tap);
    c.pieces = pieces_of(e_, tap.full);
    c.summands = summands_of(e_.sums, tap.full);
    if (tap.info.kind == TapKind::attention || tap.info.kind == TapKind::keys)
      c.support = support(*tap.layer, yardsticks);
    if (e_.golden != nullptr && mode == Mode::forced) c.golden_config = e_.c->config_name;
    const TapSketch* part = sketch(tap.full);
    const bool rows = tap.info.kind == TapKind::token || tap.info.kind == TapKind::key;
    if (part != nullptr && (part->rows_only() || (rows && mode == Mode::free))) use_rows(c, *part);
    return c;
  }

  // Attended keys of a layer, by the decision in force there; kept for the layer at hand.
  const std::vector<uint8_t>* support(int64_t layer, const Yardsticks& yardsticks) {
    const std::string name = layer_tap(layer, "topk");
    const HostTensor* topk = fed_.find(name);
    if (topk == nullptr && yardsticks.oracle != nullptr) topk = yardsticks.oracle->find(name);
    if (support_layer_ != layer || support_of_ != topk) {
      support_ = attended_keys(config_, *e_.batch, topk);
      support_layer_ = layer;
      support_of_ = topk;
    }
    return &support_;
  }

  // Without a counted label there is neither a loss nor a gradient of it.
  bool needs_labels(const TapName& tap) const {
    if (!e_.gradients.empty()) return false;
    const bool gradient = tap.info.kind == TapKind::gradient;
    return tap.full == "loss.lm" || (gradient && e_.objective.lm);
  }

  Verdict compare(const Comparison& c) {
    if (needs_labels(c.tap) && !counts_labels(*e_.batch))
      return unmeasured(c, Trust::vacuous, "no label of the batch counts");
    if (c.tap.info.is_decision()) return compare_decision(c);
    if (c.judged == nullptr) return compare_sketch(c, *sketch(c.tap.full));
    return c.mode == Mode::free ? judge_free(c, exposure()) : compare_values(c);
  }

  Verdict compare_decision(const Comparison& c) {
    if (c.yardstick.oracle != nullptr && has_nan(*c.yardstick.oracle))
      return unmeasured(c, Trust::vacuous, kNotFinite);
    Verdict verdict = c.tap.info.kind == TapKind::topk ? compare_topk(c) : compare_experts(c);
    return c.mode == Mode::free ? judge_free_decision(c, exposure(), std::move(verdict)) : verdict;
  }

  Verdict compare_topk(const Comparison& c) {
    const bool own = c.mode == Mode::staged;
    return judge_topk(c, own ? tensor(layer_tap(*c.tap.layer, "ix.scores")) : nullptr);
  }

  // Made when a tap is judged without decisions that it depends on.
  const Exposure& exposure() {
    if (exposure_) return *exposure_;
    std::map<std::string, Margins> margins;
    for (const std::string& name : forward()) {
      const TapName tap = *parse_tap(name);
      if (!tap.info.is_decision() || !decides(tap) || fed_.has(name)) continue;
      const Comparison c = comparison(tap, Mode::free, e_.forced);
      if (c.yardstick.oracle == nullptr) continue;
      margins[name] = tap.info.kind == TapKind::topk
                          ? selection_margins(c)
                          : routing_margins(c, e_.biases.at(bias_name(*tap.layer)));
    }
    return exposure_.emplace(config_, *e_.batch, margins);
  }

  Verdict compare_experts(const Comparison& c) {
    const auto bias = e_.biases.find(bias_name(*c.tap.layer));
    if (bias == e_.biases.end())
      return unmeasured(c, Trust::missing, bias_name(*c.tap.layer) + " is not in the evidence");
    const bool own = c.mode == Mode::staged;
    return judge_experts(c, bias->second,
                         own ? tensor(layer_tap(*c.tap.layer, "router.logits")) : nullptr);
  }

  // --- forward ----------------------------------------------------------------------------------

  void judge_staged(const TapName& tap) {
    if (tensor(tap.full) == nullptr) return;  // listed with the forced verdicts
    Comparison c = comparison(tap, Mode::staged, e_.staged);
    if (e_.ops_only && !inputs_there(tap)) {
      verdicts_.push_back(unmeasured(c, Trust::skipped, "an input: its own inputs are not there"));
    } else if (inputs_derivable(tap)) {
      c.fed_in_part = is_fed_in_part(tap);
      verdicts_.push_back(compare(c));
    } else {
      verdicts_.push_back(
          unmeasured(c, Trust::skipped, "its inputs depend on decisions that are not there"));
    }
  }

  // It reads attention rows of which a large case keeps few: for the other queries its stage begins
  // further up, at queries and keys.
  bool is_fed_in_part(const TapName& tap) const {
    const int64_t S = e_.batch->S;
    const bool of_kept_rows = tap.info.kind == TapKind::attention;
    if (of_kept_rows || std::ssize(kept_queries(config_, e_.batch->B, S)) == S) return false;
    const std::vector<std::string> inputs = tap_inputs(tap, config_);
    return std::any_of(inputs.begin(), inputs.end(), [&](const std::string& name) {
      const HostTensor* fed = fed_.find(name);
      return parse_tap(name)->info.kind == TapKind::attention &&
             (fed == nullptr || fed->shape()[2] < S);
    });
  }

  void judge_forced(const TapName& tap) {
    const Mode mode = unreplayed_.contains(tap.full) ? Mode::free : Mode::forced;
    if (!present(tap.full)) return list_absent(tap);
    if (e_.forced.oracle == nullptr) return;
    verdicts_.push_back(compare(comparison(tap, mode, e_.forced)));
    if (tap.info.name == "kl.dscores") judge_score_gradient(tap);
  }

  void judge_emitted() {
    if (e_.forced.oracle == nullptr) return;
    const TapName logits = *parse_tap("logits");
    const Mode mode = unreplayed_.contains(logits.full) ? Mode::free : Mode::forced;
    const Comparison c = comparison(logits, mode, e_.forced);
    verdicts_.push_back(judge_tokens(c, *e_.emitted, mode == Mode::free ? &exposure() : nullptr));
  }

  // The three taps of the judged side against each other: no oracle is asked.
  void judge_score_gradient(const TapName& tap) {
    const HostTensor* student = tensor(layer_tap(*tap.layer, "kl.student"));
    const HostTensor* target = tensor(layer_tap(*tap.layer, "kl.target"));
    if (student == nullptr || target == nullptr || tensor(tap.full) == nullptr) return;
    const Comparison c = comparison(tap, Mode::exact, e_.forced);
    verdicts_.push_back(compare_score_gradient(c, *student, *target));
  }

  void list_absent(const TapName& tap) {
    Comparison c;
    c.subject = e_.subject;
    c.tap = tap;
    c.mode = Mode::forced;
    if (std::find(e_.unheld.begin(), e_.unheld.end(), tap.info.name) != e_.unheld.end()) {
      verdicts_.push_back(unmeasured(c, Trust::skipped, "inside a fused kernel"));
      return;
    }
    const bool dense = tap.info.kind == TapKind::topk && !config_.use_sparse_attention;
    const Trust trust = e_.is_file || dense ? Trust::skipped : Trust::missing;
    verdicts_.push_back(
        unmeasured(c, trust, dense ? "dense mode: there is no selection" : "not in the trace"));
  }

  // --- gradients --------------------------------------------------------------------------------

  std::vector<std::string> expected_gradients() const {
    return e_.gradients.empty() ? gradient_taps(config_, e_.objective) : e_.gradients;
  }

  void judge_gradients() {
    const std::vector<std::string> expected = expected_gradients();
    const bool any = std::any_of(expected.begin(), expected.end(),
                                 [this](const std::string& name) { return present(name); });
    for (const std::string& name : expected) {
      const TapName tap = *parse_tap(name);
      if (!present(name)) {
        list_absent(tap);
        if (any && e_.is_file)
          verdicts_.back().note = "not in the trace, though other gradients are";
        continue;
      }
      verdicts_.push_back(judge_gradient(tap, expected));
      finish_tap();
    }
    judge_untrained_gradients(expected);
  }

  std::optional<Verdict> judge_cancelled(const Comparison& c) {
    const bool asked = c.yardstick.oracle != nullptr && c.judged != nullptr && c.tap.layer;
    if (!asked || is_of_expert(c.tap)) return std::nullopt;
    const auto [scale, is_new] = gradient_scales_.emplace(*c.tap.layer, 0);
    if (is_new)
      scale->second = std::max(
          e_.gradient_scale, gradient_scale(expected_gradients(), *e_.forced.oracle, *c.tap.layer));
    return compare_cancelled(c, scale->second);
  }

  static bool is_of_expert(const TapName& tap) {
    return tap.full.find(".experts.") != std::string::npos;
  }

  // `all`: the gradients of this run.
  Verdict judge_gradient(const TapName& tap, const std::vector<std::string>& all) {
    const Mode mode = all_replayed_ ? Mode::forced : Mode::free;
    const auto of = [&](const TapName& gradient) { return comparison(gradient, mode, e_.forced); };
    const Siblings siblings = siblings_.of(tap, all, of);
    Comparison c = of(tap);
    c.siblings = siblings;
    if (auto cancelled = judge_cancelled(c)) return *cancelled;
    Verdict verdict = compare(c);
    const HostTensor* oracle = e_.forced.oracle->find(tap.full);
    if (oracle == nullptr || !all_zero(*oracle)) return verdict;
    const bool expert = is_of_expert(tap);
    verdict.note = expert ? "no counted token reached this expert: exactly zero"
                          : "the oracle's gradient is all zero: nothing was tested";
    if (!expert && verdict.trust == Trust::pass) verdict.trust = Trust::vacuous;
    return verdict;
  }

  // The LM loss gives the indexer nothing and the KL gives it to the indexer alone: no gradient, or
  // one of exact zeros. In back-propagation order.
  void judge_untrained_gradients(const std::vector<std::string>& trained) {
    const std::set<std::string> known(trained.begin(), trained.end());
    const bool kl = e_.objective.kl != KlStage::none;
    for (const std::string& name : gradient_taps(config_, {.kl = KlStage::sparse})) {
      if (known.contains(name) || tensor(name) == nullptr) continue;
      Verdict verdict = open_verdict(comparison(*parse_tap(name), Mode::exact, e_.forced));
      verdict.checked = tensor(name)->numel();
      verdict.measures.push_back({"exact", all_zero(*tensor(name)) ? 0.0 : 1.0, 0,
                                  kl ? "docs/spec.md 2: the KL moves the indexer alone"
                                     : "docs/spec.md 2: selection is not differentiable"});
      settle(verdict);
      verdicts_.push_back(std::move(verdict));
    }
  }

  // --- what no tap tells ------------------------------------------------------------------------

  Verdict named(std::string check, Trust trust, std::string note) const {
    Verdict verdict;
    verdict.subject = e_.subject;
    verdict.tap = std::move(check);
    verdict.trust = trust;
    verdict.note = std::move(note);
    return verdict;
  }

  void judge_selection() {
    if (!(e_.c->sparse || e_.c->made_up) || !config_.use_sparse_attention) return;
    int64_t rows = 0, unselective = 0;
    for (int64_t b = 0; b < e_.batch->B; ++b)
      for (int64_t s = 0, keys = 0; s < e_.batch->S; ++s) {
        if (!e_.batch->valid(b, s)) continue;
        ++rows;
        unselective += ++keys <= config_.index_topk ? 1 : 0;
      }
    if (!e_.c->sparse && unselective < rows) return;
    Verdict verdict = named(rule_name("selection.exercised"), Trust::pass, "");
    verdict.checked = rows;
    const double share =
        rows == 0 ? 1 : static_cast<double>(unselective) / static_cast<double>(rows);
    verdict.measures.push_back(by_limit("selection.exercised", share));
    if (verdict.measures[0].within()) return verdicts_.push_back(std::move(verdict));
    verdict.trust = Trust::vacuous;
    verdict.note = unselective == rows ? "no query row sees more than index_topk keys"
                                       : "too few query rows see more than index_topk keys";
    verdicts_.push_back(std::move(verdict));
  }

  std::vector<Verdict> give_up() {
    verdicts_.push_back(
        named(rule_name("taps"), Trust::vacuous, "the trace has no tap that can be judged"));
    return std::move(verdicts_);
  }

  bool holds_scalars_alone() const {
    return std::all_of(e_.judged->names().begin(), e_.judged->names().end(),
                       [](const std::string& name) {
                         const auto tap = parse_tap(name);
                         return !tap || tap->info.kind == TapKind::scalar;
                       });
  }

  // Taps that no rule of these suites asks for, and a file without an end result.
  void list_others(const std::vector<std::string>& forward) {
    const std::set<std::string> known(forward.begin(), forward.end());
    for (const std::string& name : e_.judged->names()) {
      if (known.contains(name) || name.starts_with(kGradient)) continue;
      verdicts_.push_back(named(check_of_tap(name), Trust::skipped, "not a tap of this objective"));
    }
    if (e_.emitted && !present("logits"))
      verdicts_.push_back(named(rule_name("evidence"), Trust::vacuous,
                                "tokens alone show large errors and no small one: add gen.logits"));
    if (e_.is_file && !e_.emitted && holds_scalars_alone())
      verdicts_.push_back(named(rule_name("evidence"), Trust::vacuous,
                                "a loss alone hardly depends on the model: add logits, topk and "
                                "router.experts"));
    const bool kl = e_.objective.kl != KlStage::none;
    if (e_.is_file && !e_.emitted && !present("logits") && !present("loss.lm") &&
        !(kl && present("loss.kl")))
      verdicts_.push_back(named(rule_name("result"), Trust::missing,
                                std::string("a candidate needs ") +
                                    (kl ? "logits, loss.lm or loss.kl" : "logits or loss.lm") +
                                    ": the other taps do not make a verdict"));
  }

  const Evidence& e_;
  const ModelConfig& config_;
  const Trace& fed_;
  std::vector<Verdict> verdicts_;
  std::map<std::string, bool> derivable_;
  std::set<std::string> unreplayed_;
  bool all_replayed_ = true;
  std::optional<Exposure> exposure_;
  std::map<int64_t, double> gradient_scales_;
  SiblingNoise siblings_;
  HostTensor rows_tensor_;  // of the comparison at hand
  Batch rows_batch_;
  std::vector<uint8_t> support_;
  int64_t support_layer_ = -1;
  const HostTensor* support_of_ = nullptr;
};

}  // namespace

const std::vector<RankPiece>* pieces_of(const Evidence& evidence, const std::string& tensor) {
  if (evidence.pieces == nullptr) return nullptr;
  const auto found = evidence.pieces->find(tensor);
  return found == evidence.pieces->end() ? nullptr : &found->second;
}

const std::vector<RankSummand>* summands_of(const RankSums* sums, const std::string& tensor) {
  if (sums == nullptr) return nullptr;
  const auto found = sums->find(tensor);
  return found == sums->end() ? nullptr : &found->second;
}

Yardstick Yardsticks::of(const TapName& tap) const {
  const std::string name = measured_tap(tap);
  const auto find = [&](const Trace* run) { return run == nullptr ? nullptr : run->find(name); };
  const auto distance = [&](const Trace* run) -> const TapDistance* {
    if (run == nullptr) return nullptr;
    const auto found = run->distances.find(name);
    return found == run->distances.end() ? nullptr : &found->second;
  };
  return {.oracle = find(oracle),
          .reference = find(reference),
          .probe = find(probe),
          .twin = find(twin),
          .reference_distance = distance(reference),
          .probe_distance = distance(probe),
          .twin_distance = distance(twin)};
}

std::vector<Verdict> judge_staged(const Evidence& evidence) { return Judge(evidence).staged(); }

std::vector<Verdict> judge_selection(const Evidence& evidence) {
  return Judge(evidence).selection();
}

std::vector<Verdict> judge_forced(const Evidence& evidence) { return Judge(evidence).forced(); }

std::vector<Verdict> judge_gradients(const Evidence& evidence) {
  return Judge(evidence).gradients();
}

std::vector<Verdict> judge(const Evidence& evidence, std::vector<Verdict> staged) {
  return Judge(evidence).all(std::move(staged));
}

const Verdict* first_failure(const std::vector<Verdict>& verdicts) {
  const auto failed = [](const Verdict& verdict) { return verdict.trust == Trust::fail; };
  const auto staged = [](const Verdict& verdict) {
    return verdict.trust == Trust::fail && verdict.mode == Mode::staged;
  };
  const auto first = std::find_if(verdicts.begin(), verdicts.end(), failed);
  if (first == verdicts.end()) return nullptr;
  // An exact rule that stands before all taps (loading of the weights) comes first; else a staged
  // failure is the origin.
  const auto origin = std::find_if(first, verdicts.end(), staged);
  const bool exact_first = first->mode == Mode::exact;
  return exact_first || origin == verdicts.end() ? &*first : &*origin;
}

}  // namespace dsv32::harness
