#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "harness/judge/compare.h"
#include "harness/judge/decisions/decisions.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"

/// Expert choice of docs/spec.md 1.8: the best groups first, then the best experts inside them.
namespace dsv32::harness {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

using Groups = std::vector<int64_t>;  // ascending

// Biased scores of one token, with the noise that a correct implementation has on each.
struct Token {
  std::vector<double> scores;  // sigmoid(logit) + bias
  double noise = 0;
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// `logit_noise` of every expert becomes s (1 - s) logit_noise, plus one float32 rounding of the
// score.
Token make_token(const std::vector<double>& logits, const HostTensor& bias, double logit_noise) {
  Token token;
  for (size_t e = 0; e < logits.size(); ++e) {
    const double s = sigmoid(logits[e]);
    token.scores.push_back(s + bias.at(e));
    const double noise = s * (1 - s) * logit_noise + ulp_at(token.scores[e], DType::float32);
    token.noise = std::max(token.noise, noise);
  }
  return token;
}

int64_t group_size(const ModelConfig& config) { return config.n_routed_experts / config.n_group; }

// Sum of the two best scores of each group.
std::vector<double> group_scores(const ModelConfig& config, const Token& token) {
  const int64_t size = group_size(config);
  std::vector<double> sums;
  for (int64_t g = 0; g < config.n_group; ++g) {
    std::vector<double> members(token.scores.begin() + g * size,
                                token.scores.begin() + (g + 1) * size);
    const int64_t count = std::min<int64_t>(2, size);
    std::partial_sort(members.begin(), members.begin() + count, members.end(), std::greater<>());
    sums.push_back(count == 2 ? members[0] + members[1] : members[0]);
  }
  return sums;
}

// How far below the best excluded score the worst kept one lies; 0 when the choice is a top-k.
double shortfall(double lowest_kept, double highest_left) {
  return std::max(highest_left - lowest_kept, 0.0);
}

// Distance of a kept set of groups from legitimacy, in units of 2 * (noise of a sum of two).
double group_distance(const std::vector<double>& sums, const Groups& kept, double noise) {
  double lowest = kInfinity, highest = -kInfinity;
  for (int64_t g = 0; g < std::ssize(sums); ++g) {
    if (std::binary_search(kept.begin(), kept.end(), g)) {
      lowest = std::min(lowest, sums[g]);
    } else {
      highest = std::max(highest, sums[g]);
    }
  }
  return shortfall(lowest, highest) / (2 * 2 * noise);
}

// The same for the experts inside the kept groups, in units of 2 * noise.
double expert_distance(const ModelConfig& config, const Token& token, const Groups& kept,
                       const std::set<int64_t>& chosen) {
  double lowest = kInfinity, highest = -kInfinity;
  for (int64_t e = 0; e < config.n_routed_experts; ++e) {
    if (chosen.contains(e)) {
      lowest = std::min(lowest, token.scores[e]);
    } else if (std::binary_search(kept.begin(), kept.end(), e / group_size(config))) {
      highest = std::max(highest, token.scores[e]);
    }
  }
  return shortfall(lowest, highest) / (2 * token.noise);
}

// The smallest distance over all sets of `open` more groups that can have been kept.
double nearest_choice(const ModelConfig& config, const Token& token,
                      const std::vector<double>& sums, const std::set<int64_t>& chosen, Groups kept,
                      int64_t from, int64_t open) {
  if (open == 0) {
    std::sort(kept.begin(), kept.end());
    return std::max(group_distance(sums, kept, token.noise),
                    expert_distance(config, token, kept, chosen));
  }
  double nearest = kInfinity;
  for (int64_t g = from; g < config.n_group && nearest > 0; ++g) {
    if (std::find(kept.begin(), kept.end(), g) != kept.end()) continue;
    Groups more = kept;
    more.push_back(g);
    nearest = std::min(nearest, nearest_choice(config, token, sums, chosen, more, g + 1, open - 1));
  }
  return nearest;
}

// The same when the experts of excluded groups count as 0.
double filled_distance(const ModelConfig& config, const Token& token, const Groups& kept,
                       const std::set<int64_t>& chosen) {
  double lowest = kInfinity, highest = -kInfinity;
  for (int64_t e = 0; e < config.n_routed_experts; ++e) {
    const bool inside = std::binary_search(kept.begin(), kept.end(), e / group_size(config));
    const double score = inside ? token.scores[e] : 0;
    double& bound = chosen.contains(e) ? lowest : highest;
    bound = chosen.contains(e) ? std::min(bound, score) : std::max(bound, score);
  }
  return shortfall(lowest, highest) / (2 * token.noise);
}

// The smallest of these over all sets of kept groups.
double nearest_filled(const ModelConfig& config, const Token& token,
                      const std::vector<double>& sums, const std::set<int64_t>& chosen,
                      const Groups& kept, int64_t from) {
  if (std::ssize(kept) == config.topk_group)
    return std::max(group_distance(sums, kept, token.noise),
                    filled_distance(config, token, kept, chosen));
  double nearest = kInfinity;
  for (int64_t g = from; g < config.n_group && nearest > 0; ++g) {
    Groups more = kept;
    more.push_back(g);
    nearest = std::min(nearest, nearest_filled(config, token, sums, chosen, more, g + 1));
  }
  return nearest;
}

// Distance of a choice of experts from the nearest legitimate one: 0 for a legitimate choice.
double choice_distance(const ModelConfig& config, const Token& token,
                       const std::set<int64_t>& chosen, bool filled) {
  for (const double score : token.scores)
    if (std::isnan(score)) return kInfinity;
  std::set<int64_t> used;
  for (const int64_t e : chosen) used.insert(e / group_size(config));
  if (filled) return nearest_filled(config, token, group_scores(config, token), chosen, {}, 0);
  const int64_t open = config.topk_group - std::ssize(used);
  if (open < 0) return kInfinity;
  return nearest_choice(config, token, group_scores(config, token), chosen,
                        Groups(used.begin(), used.end()), 0, open);
}

// The lowest of the `count` best values minus the best of the others; infinite without others.
double gap_after(std::vector<double> values, int64_t count) {
  if (count >= std::ssize(values)) return kInfinity;
  std::partial_sort(values.begin(), values.begin() + count + 1, values.end(), std::greater<>());
  return values[count - 1] - values[count];
}

// Scores of the experts in the groups that the token's own choice keeps.
std::vector<double> kept_scores(const ModelConfig& config, const Token& token,
                                const std::vector<double>& sums) {
  std::vector<int64_t> groups(sums.size());
  std::iota(groups.begin(), groups.end(), 0);
  std::stable_sort(groups.begin(), groups.end(),
                   [&](int64_t a, int64_t b) { return sums[a] > sums[b]; });
  std::vector<double> kept;
  for (int64_t i = 0; i < config.topk_group; ++i)
    for (int64_t e = 0; e < group_size(config); ++e)
      kept.push_back(token.scores[groups[i] * group_size(config) + e]);
  return kept;
}

// In noises of a score: how far the token's own choice is from another one.
double choice_margin(const ModelConfig& config, const Token& token) {
  const std::vector<double> sums = group_scores(config, token);
  const double groups = gap_after(sums, config.topk_group) / 2;
  return std::min(groups, gap_after(kept_scores(config, token, sums), config.num_experts_per_tok)) /
         (2 * token.noise);
}

// Router logits with the noise of each row.
class LogitNoise {
 public:
  explicit LogitNoise(const Comparison& c) : c_(c) {
    if (!known()) return;
    c_.tap = *parse_tap(layer_tap(*c.tap.layer, "router.logits"));
    layout_.emplace(c_.tap, c.yardstick.oracle->shape(), c.batch, nullptr, RowView::judged);
    error_ = measure_rows(c_, *layout_, nullptr);
  }
  bool known() const { return c_.yardstick.oracle != nullptr; }
  Token token(int64_t i, const HostTensor& bias) const {
    std::vector<double> logits;
    layout_->gather(*c_.yardstick.oracle, layout_->rows()[i], logits);
    double noise = 0;
    for (const double logit : logits)
      noise = std::max(noise, element_noise(error_, error_.rows[i], logit, c_.dtype));
    return make_token(logits, bias, noise);
  }

 private:
  Comparison c_;
  std::optional<RowLayout> layout_;
  TapError error_;
};

// Own stored logits are known up to their own rounding.
Token own_token(const HostTensor& logits, int64_t row, const HostTensor& bias) {
  const int64_t E = logits.shape().back();
  std::vector<double> values;
  double noise = 0;
  for (int64_t e = 0; e < E; ++e) {
    values.push_back(logits.at(row * E + e));
    noise = std::max(noise, ulp_at(values.back(), logits.dtype()));
  }
  return make_token(values, bias, noise);
}

std::string invalid_because(const ModelConfig& config, const std::vector<int64_t>& picks) {
  std::set<int64_t> seen;
  for (const int64_t e : picks) {
    if (e < 0 || e >= config.n_routed_experts)
      return "expert " + std::to_string(e) + " does not exist";
    if (!seen.insert(e).second) return "expert " + std::to_string(e) + " is chosen twice";
  }
  if (std::ssize(picks) == config.num_experts_per_tok) return "";
  return std::to_string(picks.size()) + " experts are chosen, expected " +
         std::to_string(config.num_experts_per_tok);
}

struct Findings {
  int64_t rows = 0, invalid = 0, flipped = 0;
  double own = 0, band = 0;
  std::string first_invalid;
  std::optional<Worst> worst;
  std::set<int64_t> used;  // experts with a token
};

std::vector<int64_t> read_picks(const HostTensor& experts, int64_t row) {
  const int64_t K = experts.shape().back();
  std::vector<int64_t> picks;
  for (int64_t i = 0; i < K; ++i) picks.push_back(static_cast<int64_t>(experts.at(row * K + i)));
  return picks;
}

class ExpertJudge {
 public:
  ExpertJudge(const Comparison& c, const HostTensor& bias, const HostTensor* own)
      : c_(c), bias_(bias), own_(own), oracle_(c) {}

  Verdict run() {
    for (int64_t b = 0; b < c_.batch->B; ++b)
      for (int64_t s = 0; s < c_.batch->S; ++s)
        if (c_.batch->valid(b, s)) judge_row(b, s);
    if (found_.rows == 0) return unmeasured(c_, Trust::vacuous, "no row is judged");
    return finish();
  }

 private:
  void judge_row(int64_t b, int64_t s) {
    const int64_t row = b * c_.batch->S + s;
    const int64_t i = found_.rows++;
    const std::vector<int64_t> picks = read_picks(*c_.judged, row);
    const std::string invalid = invalid_because(*c_.config, picks);
    if (!invalid.empty()) return note_invalid(b, s, invalid);
    const std::set<int64_t> chosen(picks.begin(), picks.end());
    found_.used.insert(chosen.begin(), chosen.end());
    if (own_ != nullptr)
      found_.own = keep_larger(found_.own, choice_distance(*c_.config, own_token(*own_, row, bias_),
                                                           chosen, c_.excluded_experts_at_zero));
    if (oracle_.known())
      note_band(b, s,
                choice_distance(*c_.config, oracle_.token(i, bias_), chosen,
                                c_.excluded_experts_at_zero));
  }

  void note_invalid(int64_t b, int64_t s, const std::string& why) {
    if (found_.invalid++ > 0) return;
    found_.first_invalid = "b " + std::to_string(b) + ", s " + std::to_string(s) + ": " + why;
    found_.worst = Worst{{b, s}, b * c_.batch->S + s, 0, 0};
  }

  void note_band(int64_t b, int64_t s, double distance) {
    found_.flipped += distance > 0 ? 1 : 0;
    if (distance <= found_.band) return;
    found_.band = distance;
    if (found_.invalid == 0) found_.worst = Worst{{b, s}, b * c_.batch->S + s, 0, distance};
  }

  Verdict finish() const {
    Verdict verdict = open_verdict(c_);
    verdict.checked = found_.rows;
    verdict.measures.push_back({"exact", static_cast<double>(found_.invalid), 0,
                                "docs/spec.md 1.8: any other set is invalid"});
    if (own_ != nullptr) verdict.measures.push_back(by_limit("decision.own_logits", found_.own));
    if (oracle_.known()) verdict.measures.push_back(by_limit("decision.band", found_.band));
    verdict.worst = found_.worst;
    verdict.note = summary();
    if (oracle_.known() && found_.invalid == 0) verdict.choices = {found_.rows, 0, found_.flipped};
    settle(verdict);
    return verdict;
  }

  std::string summary() const {
    if (found_.invalid > 0)
      return std::to_string(found_.invalid) + " invalid rows, first " + found_.first_invalid;
    std::string text = std::to_string(found_.rows) + " rows, " + std::to_string(found_.flipped) +
                       " differ from the oracle's choice";
    std::string idle;
    for (int64_t e = 0; e < c_.config->n_routed_experts; ++e)
      if (!found_.used.contains(e)) idle += (idle.empty() ? "" : ", ") + std::to_string(e);
    return idle.empty() ? text : text + "; experts without a token: " + idle;
  }

  const Comparison& c_;
  const HostTensor& bias_;
  const HostTensor* own_;
  LogitNoise oracle_;
  Findings found_;
};

}  // namespace

Margins routing_margins(const Comparison& c, const HostTensor& bias) {
  Margins margins(c.batch->B * c.batch->S, kInfinity);
  const LogitNoise oracle(c);
  int64_t judged_row = 0;
  for (int64_t row = 0; row < std::ssize(margins); ++row) {
    if (!c.batch->valid(row / c.batch->S, row % c.batch->S)) continue;
    const Token token = oracle.token(judged_row++, bias);
    margins[row] = choice_margin(*c.config, token) / limit_of("decision.band");
  }
  return margins;
}

Verdict judge_experts(const Comparison& c, const HostTensor& bias, const HostTensor* own_logits) {
  return ExpertJudge(c, bias, own_logits).run();
}

}  // namespace dsv32::harness
