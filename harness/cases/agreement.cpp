#include "harness/cases/agreement.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "harness/judge/decisions/keys.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "harness/judge/measure/rows.h"

namespace dsv32::harness {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Rows of a tap, with the keys that any hypothesis may give a value.
struct Layout {
  TapName tap;
  std::vector<uint8_t> keys;
};

Layout layout_of(const CaseRun& run, const JudgedTrace& judged, TapName tap) {
  const Batch& batch = run.batch_of(judged);
  Layout layout{.tap = tap, .keys = {}};
  if (tap.info.name == "attn.logits") {
    const HostTensor* topk = judged.trace->find(layer_tap(*tap.layer, "topk"));
    layout.keys = attended_keys(run.the_case().config, batch, topk);
  } else {
    layout.keys.assign(batch.B * batch.S * batch.S, 1);
  }
  if (tap.info.kind == TapKind::scores) layout.tap.info.kind = TapKind::token;
  return layout;
}

/// With zeros where the oracle is infinite.
HostTensor finite_part(const HostTensor& values, const HostTensor& oracle) {
  std::vector<double> out = values.to_doubles();
  for (int64_t i = 0; i < oracle.numel(); ++i)
    if (std::isinf(oracle.at(i))) out[i] = 0;
  return HostTensor::from_doubles(DType::float64, values.shape(), out);
}

/// The same infinities at the judged rows.
bool same_infinities(const HostTensor& a, const HostTensor& b, const Batch& batch) {
  const int64_t row_length = a.numel() / (batch.B * batch.S);
  for (int64_t i = 0; i < a.numel(); ++i) {
    const int64_t row = i / row_length;
    if (!batch.valid(row / batch.S, row % batch.S)) continue;
    if (std::isinf(a.at(i)) != std::isinf(b.at(i))) return false;
  }
  return true;
}

double row_ratio(const TapError& error) {
  double largest = 0;
  for (const RowError& row : error.rows) largest = keep_larger(largest, error.row_ratio(row));
  return largest;
}

std::vector<int64_t> difference(const std::set<int64_t>& a, const std::set<int64_t>& b) {
  std::vector<int64_t> out;
  std::set_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(out));
  return out;
}

/// Two equally large sets of keys are one choice when all that is in one of them only has one
/// score.
bool tied(const std::vector<double>& scores, const std::set<int64_t>& a,
          const std::set<int64_t>& b) {
  if (a.size() != b.size()) return false;
  for (const int64_t i : difference(a, b))
    for (const int64_t j : difference(b, a)) {
      if (i >= std::ssize(scores) || i < 0) return false;
      if (scores[i] != scores[j]) return false;
    }
  return true;
}

std::vector<double> row_of(const HostTensor& tensor, int64_t row) {
  const int64_t length = tensor.shape().back();
  std::vector<double> values(length);
  for (int64_t i = 0; i < length; ++i) values[i] = tensor.at(row * length + i);
  return values;
}

/// What a router of this variant chooses by: biased scores, with the experts of excluded groups
/// filled.
class Choice {
 public:
  Choice(const ModelConfig& config, const RouterVariant& variant, HostTensor bias)
      : config_(config), variant_(variant), bias_(std::move(bias)) {}

  std::vector<double> values(const std::vector<double>& logits) const {
    std::vector<double> scores = probabilities(logits);
    for (size_t e = 0; e < scores.size(); ++e)
      if (variant_.bias_in_choice) scores[e] += bias_of(static_cast<int64_t>(e));
    if (variant_.group_score != GroupScore::every_group) exclude(scores);
    return scores;
  }

 private:
  double bias_of(int64_t e) const {
    const double exact = bias_.at(e);
    return variant_.bias_in_bfloat16
               ? bfloat16_to_float(float_to_bfloat16(static_cast<float>(exact)))
               : exact;
  }

  std::vector<double> probabilities(const std::vector<double>& logits) const {
    std::vector<double> scores;
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const double x : logits) {
      scores.push_back(variant_.softmax ? std::exp(x - largest) : 1 / (1 + std::exp(-x)));
      sum += scores.back();
    }
    if (variant_.softmax)
      for (double& s : scores) s /= sum;
    return scores;
  }

  int64_t counted() const {
    if (variant_.group_score == GroupScore::max) return 1;
    if (variant_.group_score == GroupScore::top2) return 2;
    return std::max<int64_t>(config_.num_experts_per_tok / config_.topk_group, 1);
  }

  void exclude(std::vector<double>& scores) const {
    const int64_t size = config_.n_routed_experts / config_.n_group;
    std::vector<double> sums;
    for (int64_t g = 0; g < config_.n_group; ++g) {
      std::vector<double> members(scores.begin() + g * size, scores.begin() + (g + 1) * size);
      std::sort(members.begin(), members.end(), std::greater<>());
      sums.push_back(
          std::accumulate(members.begin(), members.begin() + std::min(counted(), size), 0.0));
    }
    std::vector<int64_t> order(sums.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return sums[a] > sums[b]; });
    const int64_t kept =
        std::clamp<int64_t>(config_.topk_group + variant_.topk_group_delta, 1, config_.n_group);
    for (int64_t i = kept; i < std::ssize(order); ++i)
      for (int64_t e = 0; e < size; ++e)
        scores[order[i] * size + e] = variant_.group_fill_zero ? 0 : -kInfinity;
  }

  const ModelConfig& config_;
  const RouterVariant variant_;
  const HostTensor bias_;
};

/// The chosen experts have the best values, roundings of float32 aside.
bool is_best(const std::vector<double>& values, const std::set<int64_t>& chosen, int64_t count) {
  if (std::ssize(chosen) != count) return false;
  constexpr double kRoundings = 4;
  double lowest = kInfinity, highest = -kInfinity;
  for (int64_t e = 0; e < std::ssize(values); ++e) {
    double& bound = chosen.contains(e) ? lowest : highest;
    bound = chosen.contains(e) ? std::min(bound, values[e]) : std::max(bound, values[e]);
  }
  if (lowest == -kInfinity) return false;
  if (highest == -kInfinity) return true;  // all that are left
  return lowest >= highest - kRoundings * ulp_at(highest, DType::float32);
}

}  // namespace

const HostTensor* Agreement::input(const std::string& tap) const {
  return (judged_.fed != nullptr ? judged_.fed : judged_.trace)->find(tap);
}

bool Agreement::comparable(const std::string& tap, const HostTensor* oracle) const {
  const HostTensor* judged = judged_.trace->find(tap);
  return judged != nullptr && oracle != nullptr && judged->shape() == oracle->shape();
}

double Agreement::gap(const std::string& name, const HostTensor* oracle,
                      const Dialect& dialect) const {
  if (!comparable(name, oracle)) return kInfinity;
  const HostTensor& judged = *judged_.trace->find(name);
  const Batch& batch = run_.batch_of(judged_);
  const TapName tap = *parse_tap(name);
  if (tap.info.is_decision()) {
    const RowCount count = other_choices(name, *oracle, dialect);
    return static_cast<double>(count.other) / static_cast<double>(std::max<int64_t>(count.rows, 1));
  }
  const Layout layout = layout_of(run_, judged_, tap);
  const RowLayout rows(layout.tap, oracle->shape(), &batch, &layout.keys, RowView::judged);
  double distance = 0, norm = 0;
  std::vector<double> k, o;
  for (const Row& row : rows.rows()) {
    rows.gather(judged, row, k);
    rows.gather(*oracle, row, o);
    for (size_t i = 0; i < k.size(); ++i) {
      if (std::isinf(o[i]) && k[i] == o[i]) continue;
      if (std::isinf(o[i]) != std::isinf(k[i])) {  // as far off as any other value
        distance += std::isinf(o[i]) ? k[i] * k[i] + 1 : o[i] * o[i] + 1;
        continue;
      }
      distance += (k[i] - o[i]) * (k[i] - o[i]);
      norm += o[i] * o[i];
    }
  }
  if (distance == 0) return 0;
  return norm > 0 ? std::sqrt(distance / norm) : kInfinity;
}

bool Agreement::agrees(const std::string& name, const Expected& expected, Mode mode,
                       const Dialect& dialect) const {
  if (!comparable(name, expected.oracle)) return false;
  if (parse_tap(name)->info.is_decision())
    return other_choices(name, *expected.oracle, dialect).other == 0;
  return same_values(name, expected, mode);
}

Agreement::RowCount Agreement::other_choices(const std::string& name, const HostTensor& oracle,
                                             const Dialect& dialect) const {
  const bool keys = parse_tap(name)->info.kind == TapKind::topk;
  return count_rows(keys ? same_keys(name, oracle) : same_experts(name, oracle, dialect));
}

Agreement::RowCount Agreement::count_rows(const std::function<bool(int64_t)>& same) const {
  const Batch& batch = run_.batch_of(judged_);
  RowCount count;
  for (int64_t row = 0; row < batch.B * batch.S; ++row) {
    if (!batch.valid(row / batch.S, row % batch.S)) continue;
    ++count.rows;
    count.other += same(row) ? 0 : 1;
  }
  return count;
}

std::function<bool(int64_t)> Agreement::same_keys(const std::string& name,
                                                  const HostTensor& oracle) const {
  const HostTensor& judged = *judged_.trace->find(name);
  const HostTensor* scores = input(layer_tap(*parse_tap(name)->layer, "ix.scores"));
  return [&judged, &oracle, scores](int64_t row) {
    const std::set<int64_t> theirs = picks_of_row(judged, row), ours = picks_of_row(oracle, row);
    return theirs == ours || (scores != nullptr && tied(row_of(*scores, row), theirs, ours));
  };
}

std::function<bool(int64_t)> Agreement::same_experts(const std::string& name,
                                                     const HostTensor& oracle,
                                                     const Dialect& dialect) const {
  const int64_t layer = *parse_tap(name)->layer;
  const HostTensor& judged = *judged_.trace->find(name);
  const HostTensor* logits = input(layer_tap(layer, "router.logits"));
  if (logits == nullptr)
    return [&](int64_t row) { return picks_of_row(judged, row) == picks_of_row(oracle, row); };
  const ModelConfig& config = run_.the_case().config;
  const int64_t E = config.n_routed_experts, K = config.num_experts_per_tok;
  const int64_t shift = dialect.router.expert_id_shift;
  const Choice choice(config, dialect.router, run_.router_bias(layer));
  return [&judged, logits, E, K, shift, choice](int64_t row) {
    std::set<int64_t> chosen;
    for (const int64_t e : picks_of_row(judged, row)) chosen.insert(((e - shift) % E + E) % E);
    return is_best(choice.values(row_of(*logits, row)), chosen, K);
  };
}

bool Agreement::same_values(const std::string& name, const Expected& expected, Mode mode) const {
  const TapName tap = *parse_tap(name);
  const HostTensor& judged = *judged_.trace->find(name);
  const HostTensor& oracle = *expected.oracle;
  const bool scores = tap.info.kind == TapKind::scores;
  if (scores && !same_infinities(judged, oracle, run_.batch_of(judged_))) return false;
  const Layout layout = layout_of(run_, judged_, tap);
  const auto part = [&](const HostTensor* values) {
    return values == nullptr ? HostTensor() : scores ? finite_part(*values, oracle) : *values;
  };
  const HostTensor k = part(&judged), o = part(&oracle), r = part(expected.reference),
                   t = part(expected.twin);
  Comparison c;
  c.config = &run_.the_case().config;
  c.batch = &run_.batch_of(judged_);
  c.tap = layout.tap;
  c.mode = mode;
  c.dtype = judged_.dtype;
  c.judged = &k;
  c.support = &layout.keys;
  c.yardstick = {
      .oracle = &o, .reference = r.defined() ? &r : nullptr, .twin = t.defined() ? &t : nullptr};
  const RowLayout rows(c.tap, o.shape(), c.batch, c.support, RowView::judged);
  const TapError error = measure_rows(c, rows, c.judged);
  if (error.norm == 0) return error.judged == 0;
  const TapLimits& limits = limits_for(tap, mode, judged_.dtype);
  if (!(error.tensor_ratio() <= limits.tensor_ratio && row_ratio(error) <= limits.row_ratio))
    return false;
  const Tail tail = measure_tail(c, rows, error, limits.tail);
  const double allowed =
      std::max(limits.tail_count, limits.tail_fraction * static_cast<double>(error.elements));
  return static_cast<double>(tail.beyond) <= allowed && tail.largest <= limits.max_tail;
}

}  // namespace dsv32::harness
