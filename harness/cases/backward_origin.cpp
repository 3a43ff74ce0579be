#include "harness/cases/backward_origin.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <set>

#include "harness/cases/gradient_patterns.h"
#include "harness/judge/backward.h"
#include "harness/judge/decisions/keys.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/rows.h"

namespace dsv32::harness {
namespace {

using Names = std::vector<std::string>;

bool contains(const Names& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string join(const Names& parts) {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i)
    text += (i == 0 ? "" : i + 1 == parts.size() ? " and " : ", ") + parts[i];
  return text;
}

/// Sums alone: what they hand back is what they got.
bool is_sum(const std::string& op) {
  const std::string stem = tap_stem(op);
  return stem == "hidden" || stem == "mlp.out";
}

/// The part of a gradient's error that another size of one op's share explains.
struct Fit {
  double gain = 1;   // of the share
  double share = 0;  // of the squared error
};

/// What one op hands to a tap.
struct Candidate {
  std::string op;
  Names through;
  std::string words;  // of the op
  /// It hands on what it got: the path around the op of this name, or a sum.
  enum class Kind { op, sum, around } kind = Kind::op;
  Fit fit = {};
};

HostTensor zeros_like(const HostTensor& value) { return {value.dtype(), value.shape()}; }

class Origins {
 public:
  Origins(const CaseRun& run, const JudgedTrace& judged, const std::vector<Verdict>& verdicts)
      : run_(run), judged_(judged), config_(run.the_case().config) {
    for (const Verdict& verdict : verdicts) sort_in(verdict);
  }

  std::vector<BackwardOrigin> find() {
    std::vector<BackwardOrigin> found;
    while (!failing_.empty()) {
      BackwardOrigin origin = explain(failing_.front());
      std::erase_if(failing_, [&](const std::string& name) { return contains(origin.taps, name); });
      add(found, std::move(origin));
    }
    return found;
  }

 private:
  void sort_in(const Verdict& verdict) {
    if (verdict.mode != Mode::staged) return;
    const bool gradient = parse_slope(verdict.tap) || verdict.tap.starts_with("grad.");
    const bool failed = verdict.trust == Trust::fail;
    // An expert without tokens: a right zero says nothing about its op.
    const bool zero = !verdict.measures.empty() && verdict.measures.front().metric == "exact";
    if (zero && !failed) return;
    if (!gradient) {
      if (failed) broken_.insert(verdict.tap);
      return;
    }
    if (verdict.trust != Trust::fail && verdict.trust != Trust::pass) return;
    for (const GradientSource& source : sources(verdict.tap))
      outputs_[source.op].push_back(verdict.tap);
    if (!failed) {
      passing_.insert(verdict.tap);
    } else if (!follows_from_forward(verdict.tap)) {
      failing_.push_back(verdict.tap);
      verdicts_[verdict.tap] = verdict;
    }
  }

  std::vector<GradientSource> sources(const std::string& gradient) const {
    return gradient_sources(gradient, config_, run_.objective(), judged_.trace->slopes);
  }

  /// The forward pass of an op next to it is wrong, so its backward pass is another one too.
  bool follows_from_forward(const std::string& gradient) const {
    for (const GradientSource& source : sources(gradient)) {
      if (broken_.contains(source.op)) return true;
      for (const std::string& op : source.through)
        if (broken_.contains(op)) return true;
    }
    return false;
  }

  // --- whose fault one failing gradient is ------------------------------------------------------

  BackwardOrigin explain(const std::string& gradient) {
    if (parse_slope(gradient) && stops(gradient)) return stop_at(gradient);
    std::vector<Candidate> candidates = candidates_of(gradient);
    if (candidates.empty())
      return {.op = gradient, .words = words_alone(gradient), .taps = {gradient}};
    const std::optional<TapName> tap = parse_slope(gradient);
    if (tap && candidates.size() > 1) measure(*tap, candidates);
    const auto better = [&](const Candidate& a, const Candidate& b) { return score(a) < score(b); };
    Candidate best = *std::max_element(candidates.begin(), candidates.end(), better);
    if (!tap) measure_first_slope(best);
    return origin_of(best, gradient);
  }

  /// Where a weight told of the op, what it hands to a tap beside others.
  void measure_first_slope(Candidate& op) {
    for (const std::string& name : outputs_[op.op]) {
      const std::optional<TapName> tap = parse_slope(name);
      if (!tap || !contains(failing_, name) || sources(name).size() < 2) continue;
      std::vector<Candidate> alone = {op};
      measure(*tap, alone);
      op.fit = alone.front().fit;
      return;
    }
  }

  BackwardOrigin stop_at(const std::string& gradient) const {
    const TapName tap = *parse_slope(gradient);
    Names ops;
    for (const GradientSource& source : sources(gradient)) ops.push_back(tap_stem(source.op));
    BackwardOrigin origin{.op = tap.full,
                          .words = "the gradient stops: nothing arrives at " + tap.full +
                                   (ops.empty() ? "" : " from " + join(ops)),
                          .taps = {gradient}};
    if (tap.layer) origin.layers = {*tap.layer};
    return origin;
  }

  std::vector<Candidate> candidates_of(const std::string& gradient) const {
    std::vector<Candidate> out;
    const std::optional<TapName> tap = parse_slope(gradient);
    const bool added = tap && tap->info.name == "mlp.out";
    for (GradientSource& source : sources(gradient))
      out.push_back({.op = source.op,
                     .through = source.through,
                     .words = name_of(source.op, source.through, added),
                     .kind = is_sum(source.op) ? Candidate::Kind::sum : Candidate::Kind::op});
    const bool stream = tap && (tap->info.name == "hidden" || tap->info.name == "embed");
    if (!stream) return out;
    const int64_t next = tap->layer ? *tap->layer + 1 : 0;
    const std::string around = layer_tap(next, "attn.out");
    if (next < config_.num_hidden_layers && judged_.trace->slopes.contains(around))
      out.push_back(
          {.op = around,
           .through = {},
           .words = "the residual path around the attention of layer " + std::to_string(next),
           .kind = Candidate::Kind::around});
    return out;
  }

  static std::string name_of(const std::string& op, const Names& through, bool added) {
    if (tap_stem(op) == "hidden" && added) return "the sum " + op;
    if (tap_stem(op) == "hidden")
      return "the residual path around the MLP of layer " + std::to_string(*parse_tap(op)->layer);
    if (through.empty()) return op;
    Names inner;
    for (const std::string& name : through) inner.push_back(tap_stem(name));
    return op + " (with " + join(inner) + ")";
  }

  static constexpr int64_t kOfItsRows = 1000;  // outweighs every count

  /// First whether it explains the error alone, then how much of what it hands back is wrong.
  std::pair<double, int64_t> score(const Candidate& c) {
    constexpr double kExact = 1 - 1e-3;  // of two that explain it, one may do so exactly
    const bool fits = c.fit.share >= limit_of("structure.share");
    const double share = !fits ? 0 : c.fit.share >= kExact ? 1 : c.fit.share;
    if (c.kind != Candidate::Kind::op) return {share, -1'000'000};
    int64_t balance = 0;
    const auto outputs = outputs_.find(c.op);
    if (outputs == outputs_.end()) return {share, balance};
    for (const std::string& name : outputs->second) {
      if (contains(failing_, name)) balance += 1 + kOfItsRows * of_its_rows(c.op, name);
      if (passing_.contains(name)) --balance;
    }
    return {share, balance};
  }

  /// Of a failing weight that several ops share, each with rows of its own (nope and rope rows):
  /// 1 when the error lies in those of this op, -1 when it lies elsewhere.
  int64_t of_its_rows(const std::string& op, const std::string& weight) {
    if (parse_slope(weight) || sources(weight).size() < 2) return 0;
    const std::vector<double> whole = part(weight, ""), own = part(weight, op);
    const HostTensor& judged = *judged_.trace->find(weight);
    double inside = 0, all = 0;
    for (size_t i = 0; i < whole.size() && i < own.size(); ++i) {
      const double error = std::pow(judged.at(static_cast<int64_t>(i)) - whole[i], 2);
      all += error;
      if (own[i] != 0) inside += error;
    }
    if (inside >= limit_of("structure.share") * all) return 1;
    return inside <= (1 - limit_of("structure.share")) * all ? -1 : 0;
  }

  // --- what each op hands to a tap, alone -------------------------------------------------------

  void measure(const TapName& tap, std::vector<Candidate>& candidates) {
    const HostTensor& own = judged_.trace->slopes.at(tap.full);
    const std::vector<double> judged = own.to_doubles();
    const auto whole = part(slope_name(tap.full), "");
    if (whole.size() != judged.size()) return;
    const std::vector<bool> counts = judged_elements(tap, own.shape());
    for (Candidate& candidate : candidates) {
      const bool around = candidate.kind == Candidate::Kind::around;
      const std::vector<double> share = around ? judged_.trace->slopes.at(candidate.op).to_doubles()
                                               : part(slope_name(tap.full), candidate.op);
      candidate.fit = fit(judged, whole, share, counts);
    }
  }

  static Fit fit(const std::vector<double>& judged, const std::vector<double>& whole,
                 const std::vector<double>& share, const std::vector<bool>& counts) {
    double cc = 0, rc = 0, rr = 0;
    for (size_t i = 0; i < judged.size() && share.size() == judged.size(); ++i) {
      if (!counts[i]) continue;
      const double r = judged[i] - whole[i];
      cc += share[i] * share[i];
      rc += r * share[i];
      rr += r * r;
    }
    if (!(cc > 0 && rr > 0)) return {};
    return {1 + rc / cc, rc * rc / (cc * rr)};
  }

  std::vector<bool> judged_elements(const TapName& tap, const Shape& shape) const {
    const RowLayout layout(tap, shape, &run_.batch(), nullptr, RowView::judged);
    std::vector<bool> counts(static_cast<size_t>(numel(shape)), false);
    for (const Row& row : layout.rows())
      for (int64_t i = 0; i < row.pieces * row.length; ++i)
        counts[static_cast<size_t>(layout.flat_index(row, i))] = true;
    return counts;
  }

  /// The float64 reference's gradient of this name, from one op alone ("": from all).
  std::vector<double> part(const std::string& gradient, const std::string& op) {
    const auto known = parts_.find(op);
    if (known == parts_.end()) parts_.emplace(op, run_part(op));
    const Trace& trace = parts_.at(op);
    const std::optional<TapName> tap = parse_slope(gradient);
    const auto slope = tap ? trace.slopes.find(tap->full) : trace.slopes.end();
    if (slope != trace.slopes.end()) return slope->second.to_doubles();
    const HostTensor* weight = trace.find(gradient);
    return weight == nullptr ? std::vector<double>{} : weight->to_doubles();
  }

  Trace run_part(const std::string& op) const {
    Trace feed = judged_.fed != nullptr ? *judged_.fed : *judged_.trace;
    feed.slopes = judged_.trace->slopes;
    for (auto& [name, slope] : feed.slopes)
      if (!op.empty() && name != op) slope = zeros_like(slope);
    return run_.run({.dtype = DType::float64,
                     .dialect = judged_.dialect,
                     .backward = true,
                     .slopes = true,
                     .feeding = Feeding::staged,
                     .feed = &feed,
                     .wanted =
                         [](const std::string& name) {
                           return parse_slope(name).has_value() || name.starts_with("grad.");
                         }},
                    "the backward pass of one op");
  }

  // --- words ------------------------------------------------------------------------------------

  BackwardOrigin origin_of(const Candidate& best, const std::string& first) const {
    Names taps = {first};
    const auto outputs = outputs_.find(best.op);
    if (outputs != outputs_.end())
      for (const std::string& name : failing_)
        if (name != first && contains(outputs->second, name)) taps.push_back(name);
    BackwardOrigin origin{.op = best.op, .taps = taps};
    if (const auto layer = parse_tap(best.op)->layer) origin.layers = {*layer};
    origin.words = words(best, taps);
    return origin;
  }

  /// Nothing arrived, though something should have.
  bool stops(const std::string& gradient) const {
    const Verdict& verdict = verdicts_.at(gradient);
    return verdict.gain && *verdict.gain == 0;
  }

  std::string words(const Candidate& best, const Names& taps) const {
    Names to;
    Names weights, good_weights;
    for (const std::string& name : taps) {
      if (const auto tap = parse_slope(name)) {
        to.push_back(tap->full);
      } else {
        weights.push_back(name);
      }
    }
    if (const auto outputs = outputs_.find(best.op); outputs != outputs_.end())
      for (const std::string& name : outputs->second)
        if (passing_.contains(name) && name.starts_with("grad.")) good_weights.push_back(name);
    std::string text = "the backward pass of " + best.words + " is wrong";
    if (!to.empty()) text += ": " + look(best, to);
    if (!weights.empty())
      text += (to.empty() ? ": " : "; ") + look_of_weights(weights, good_weights);
    if (!to.empty() && weights.empty() && !good_weights.empty())
      text += "; the gradients of its weights are right";
    if (to.empty()) text += "; what it hands on is right";
    return text;
  }

  std::string look(const Candidate& best, const Names& to) const {
    const std::string first = slope_name(to.front());
    std::string text = "what it hands to " + join(to);
    if (best.fit.share >= limit_of("structure.share")) return text + in_words(best.fit.gain);
    const std::string& structure = verdicts_.at(first).structure;
    return text + (structure.empty() ? "" : " (" + structure + ")");
  }

  static std::string in_words(double gain) {
    constexpr double kNothing = 1e-4;
    if (std::fabs(gain) < kNothing) return " is missing";
    char text[48];
    std::snprintf(text, sizeof text, " is multiplied by %.4g", gain);
    return text;
  }

  std::string look_of_weights(const Names& weights, const Names& right) const {
    std::vector<Verdict> verdicts;
    for (const std::string& name : weights) verdicts.push_back(verdicts_.at(name));
    Names texts;
    for (const GradientPattern& pattern : gradient_patterns(weights, right, verdicts)) {
      const std::string& structure = verdicts_.at(pattern.taps.front()).structure;
      const bool plain = pattern.words.starts_with("gradients are off");
      texts.push_back(plain ? pattern.taps.front() +
                                  (structure.empty() ? " is off" : " (" + structure + ")")
                            : pattern.words);
    }
    return join(texts);
  }

  std::string words_alone(const std::string& gradient) const {
    const std::string& structure = verdicts_.at(gradient).structure;
    return gradient + " is off" + (structure.empty() ? "" : " (" + structure + ")");
  }

  /// One line for the same op of several layers that looks the same.
  void add(std::vector<BackwardOrigin>& found, BackwardOrigin origin) const {
    for (BackwardOrigin& other : found) {
      if (origin.layers.empty() || other.layers.empty()) continue;
      if (without_layer(other) != without_layer(origin)) continue;
      other.layers.push_back(origin.layers.front());
      std::sort(other.layers.begin(), other.layers.end());
      other.taps.insert(other.taps.end(), origin.taps.begin(), origin.taps.end());
      return;
    }
    found.push_back(std::move(origin));
  }

  /// The gradients of an op, whatever its layer: what it looks like without its numbers.
  static std::pair<std::string, std::set<std::string>> without_layer(const BackwardOrigin& origin) {
    std::set<std::string> stems;
    for (const std::string& tap : origin.taps)
      stems.insert(tap == slope_name("embed") ? slope_name("hidden") : tap_stem(tap));
    return {tap_stem(origin.op), stems};
  }

  const CaseRun& run_;
  const JudgedTrace& judged_;
  const ModelConfig& config_;
  Names failing_;  // in back-propagation order
  std::set<std::string> passing_, broken_;
  std::map<std::string, Names> outputs_;  // the judged gradients that an op hands back, by op
  std::map<std::string, Verdict> verdicts_;
  std::map<std::string, Trace> parts_;
};

}  // namespace

std::vector<BackwardOrigin> backward_origins(const CaseRun& run, const JudgedTrace& judged,
                                             const std::vector<Verdict>& verdicts) {
  return Origins(run, judged, verdicts).find();
}

}  // namespace dsv32::harness
