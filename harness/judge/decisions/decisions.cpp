#include "harness/judge/decisions/decisions.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "harness/judge/compare.h"
#include "harness/judge/decisions/keys.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "harness/judge/picture.h"
#include "harness/judge/structure/selection.h"

namespace dsv32::harness {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One row of the judged topk tap with the keys that its query sees.
struct Query {
  int64_t b = 0, s = 0;
  std::vector<int64_t> picks;    // without the -1 at unused slots
  std::vector<int64_t> visible;  // ascending
  int64_t k = 0;                 // how many must be picked
};

// Without its picks.
Query open_query(const Comparison& c, int64_t b, int64_t s) {
  Query query{.b = b, .s = s, .picks = {}, .visible = {}};
  for (int64_t t = 0; t <= s; ++t)
    if (visible(*c.batch, b, s, t)) query.visible.push_back(t);
  query.k = std::min<int64_t>(c.config->index_topk, std::ssize(query.visible));
  return query;
}

Query read_query(const Comparison& c, int64_t b, int64_t s) {
  Query query = open_query(c, b, s);
  const int64_t slots = c.judged->shape().back();
  for (int64_t i = 0; i < slots; ++i) {
    const auto pick = static_cast<int64_t>(c.judged->at((b * c.batch->S + s) * slots + i));
    if (pick != -1) query.picks.push_back(pick);
  }
  return query;
}

// Of the keys up to the query, 1 for those that are there; all of them are visible.
std::vector<uint8_t> flags_of(const Query& query, const std::vector<int64_t>& keys) {
  std::vector<uint8_t> flags(query.s + 1);
  for (const int64_t key : keys) flags[key] = 1;
  return flags;
}

// "" when the row's set is one that a selection can make at all.
std::string invalid_because(const Query& query) {
  std::vector<uint8_t> seen(query.s + 1);
  for (const int64_t pick : query.picks) {
    if (!std::binary_search(query.visible.begin(), query.visible.end(), pick))
      return "key " + std::to_string(pick) + " is not visible";
    if (seen[pick]++ != 0) return "key " + std::to_string(pick) + " is picked twice";
  }
  if (std::ssize(query.picks) == query.k) return "";
  return std::to_string(query.picks.size()) + " keys are picked, expected " +
         std::to_string(query.k);
}

std::vector<double> scores_of(const HostTensor& scores, const Query& query) {
  const int64_t S = scores.shape()[1], T = scores.shape()[2];
  std::vector<double> row(T, -kInfinity);
  for (const int64_t t : query.visible) row[t] = scores.at((query.b * S + query.s) * T + t);
  return row;
}

// Every picked key scores at least as much as every visible key that was not. NaN never does.
bool is_top_of(const Query& query, const std::vector<double>& scores) {
  const std::vector<uint8_t> picked = flags_of(query, query.picks);
  double lowest = kInfinity, highest_left = -kInfinity;
  for (const int64_t t : query.visible) {
    if (std::isnan(scores[t])) return false;
    double& bound = picked[t] != 0 ? lowest : highest_left;
    bound = picked[t] != 0 ? std::min(bound, scores[t]) : std::max(bound, scores[t]);
  }
  return lowest >= highest_left;
}

// The oracle's own choice: score descending, then key ascending.
std::vector<int64_t> best_keys(const Query& query, const std::vector<double>& scores) {
  std::vector<int64_t> keys = query.visible;
  const auto better = [&](int64_t a, int64_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
  };
  std::partial_sort(keys.begin(), keys.begin() + query.k, keys.end(), better);
  keys.resize(query.k);
  return keys;
}

// Exclusive elements of one row against the oracle's scores.
struct Flips {
  int64_t count = 0;
  double distance = 0;  // of the worst one from the cut
  int64_t worst = -1;   // its key
  double cut = 0;       // the oracle's k-th score
};

Flips find_flips(const Query& query, const std::vector<double>& scores) {
  std::vector<int64_t> best = best_keys(query, scores);
  Flips flips{.cut = scores[best.back()]};
  const std::vector<uint8_t> ours = flags_of(query, best), theirs = flags_of(query, query.picks);
  for (const int64_t t : query.visible) {
    if (ours[t] == theirs[t]) continue;
    ++flips.count;
    const double distance = std::fabs(scores[t] - flips.cut);
    if (flips.worst >= 0 && distance <= flips.distance) continue;
    flips.distance = distance;
    flips.worst = t;
  }
  return flips;
}

struct Findings {
  int64_t rows = 0, picks = 0, determined = 0;
  int64_t invalid = 0, not_top = 0, differing_rows = 0, differing = 0;
  double band = 0;
  std::string first_invalid;
  std::optional<Worst> worst_invalid, worst_band;
};

std::string place(const Query& query) {
  return "b " + std::to_string(query.b) + ", s " + std::to_string(query.s);
}

void note_invalid(const Query& query, const std::string& why, Findings& found) {
  if (found.invalid++ > 0) return;
  found.first_invalid = place(query) + ": " + why;
  found.worst_invalid = Worst{{query.b, query.s},
                              query.s,
                              static_cast<double>(query.k),
                              static_cast<double>(query.picks.size())};
}

void note_flips(const Query& query, const Flips& flips, double noise,
                const std::vector<double>& scores, Findings& found) {
  if (flips.count == 0) return;
  ++found.differing_rows;
  found.differing += flips.count;
  const double units = flips.distance == 0 ? 0 : flips.distance / (2 * noise);
  if (units <= found.band && found.worst_band) return;
  found.band = units;
  found.worst_band =
      Worst{{query.b, query.s, flips.worst}, query.s, flips.cut, scores[flips.worst]};
}

// The oracle's scores with the noise that a correct implementation has on them.
class ScoreNoise {
 public:
  explicit ScoreNoise(const Comparison& c) : c_(c) {
    if (scores() == nullptr) return;
    c_.tap = *parse_tap(layer_tap(*c.tap.layer, "ix.scores"));
    const RowLayout layout(c_.tap, scores()->shape(), c.batch, nullptr, RowView::judged);
    error_ = measure_rows(c_, layout, nullptr);
  }
  const HostTensor* scores() const { return c_.yardstick.oracle; }
  /// Of the i-th judged row, at its cut.
  double at(int64_t i, double cut) const {
    return element_noise(error_, error_.rows[i], cut, c_.dtype);
  }

 private:
  Comparison c_;
  TapError error_;
};

void judge_query(const Query& query, const HostTensor* own_scores, const ScoreNoise& oracle,
                 Findings& found) {
  const int64_t row = found.rows++;
  found.picks += std::ssize(query.picks);
  const std::string invalid = invalid_because(query);
  if (!invalid.empty()) return note_invalid(query, invalid, found);
  if (std::ssize(query.visible) <= query.k) {
    ++found.determined;
    return;
  }
  if (own_scores != nullptr && !is_top_of(query, scores_of(*own_scores, query))) ++found.not_top;
  if (oracle.scores() == nullptr) return;
  const std::vector<double> scores = scores_of(*oracle.scores(), query);
  const Flips flips = find_flips(query, scores);
  note_flips(query, flips, oracle.at(row, flips.cut), scores, found);
}

std::string summary(const Findings& found, bool has_oracle) {
  if (found.invalid > 0)
    return std::to_string(found.invalid) + " invalid rows, first " + found.first_invalid;
  std::string text = std::to_string(found.rows) + " rows, " + std::to_string(found.determined) +
                     " of them determined";
  if (!has_oracle) return text + "; the oracle has no scores: validity only";
  return text + "; " + std::to_string(found.differing_rows) + " differ from the oracle's choice (" +
         std::to_string(found.differing) + " elements)";
}

Verdict settle_topk(const Comparison& c, const Findings& found, bool has_own, bool has_oracle) {
  Verdict verdict = open_verdict(c);
  verdict.checked = found.picks;
  verdict.measures.push_back({"exact", static_cast<double>(found.invalid), 0,
                              "docs/spec.md 1.6: any other set is invalid"});
  if (has_own)
    verdict.measures.push_back({"own scores", static_cast<double>(found.not_top), 0,
                                "the set must be a top-k of the same stored scores"});
  if (has_oracle) verdict.measures.push_back(by_limit("decision.band", found.band));
  verdict.worst = found.worst_invalid ? found.worst_invalid : found.worst_band;
  verdict.note = summary(found, has_oracle);
  if (has_oracle && found.invalid == 0)
    verdict.choices = {found.rows, found.determined, found.differing_rows};
  settle(verdict);
  return verdict;
}

// Whose pick each key is.
Picture picture_of(const Comparison& c, const HostTensor& scores) {
  ChoicePainter painter(*c.batch, scores.shape().back(), "keys");
  for (int64_t b = 0; b < c.batch->B; ++b)
    for (int64_t s = 0; s < c.batch->S; ++s) {
      if (!c.batch->valid(b, s)) continue;
      const Query query = read_query(c, b, s);
      painter.add(b * c.batch->S + s, query.picks, best_keys(query, scores_of(scores, query)));
    }
  return painter.picture();
}

}  // namespace

Verdict judge_topk(const Comparison& c, const HostTensor* own_scores) {
  if (!c.config->use_sparse_attention)
    return unmeasured(c, Trust::skipped, "dense mode: no selection takes part in the values");
  const ScoreNoise oracle(c);
  Findings found;
  for (int64_t b = 0; b < c.batch->B; ++b)
    for (int64_t s = 0; s < c.batch->S; ++s)
      if (c.batch->valid(b, s)) judge_query(read_query(c, b, s), own_scores, oracle, found);
  if (found.rows == 0) return unmeasured(c, Trust::vacuous, "no row is judged");
  Verdict verdict = settle_topk(c, found, own_scores != nullptr, oracle.scores() != nullptr);
  if (verdict.trust != Trust::fail) return verdict;
  verdict.structure = describe_selection(c, own_scores);
  if (oracle.scores() != nullptr) verdict.picture = picture_of(c, *oracle.scores());
  return verdict;
}

Margins selection_margins(const Comparison& c) {
  Margins margins(c.batch->B * c.batch->S, kInfinity);
  const ScoreNoise oracle(c);
  int64_t judged_row = 0;
  for (int64_t row = 0; row < c.batch->B * c.batch->S; ++row) {
    if (!c.batch->valid(row / c.batch->S, row % c.batch->S)) continue;
    const int64_t i = judged_row++;
    Query query = open_query(c, row / c.batch->S, row % c.batch->S);
    if (std::ssize(query.visible) <= query.k) continue;
    const std::vector<double> scores = scores_of(*oracle.scores(), query);
    ++query.k;  // the best key that is left out comes last
    const std::vector<int64_t> best = best_keys(query, scores);
    const double cut = scores[best[best.size() - 2]], next = scores[best.back()];
    const double band = 2 * oracle.at(i, cut) * limit_of("decision.band");
    margins[row] = (cut - next) / band;
  }
  return margins;
}

FlipCount count_flips(const HostTensor& judged, const HostTensor& oracle, const Batch& batch) {
  FlipCount count;
  for (int64_t row = 0; row < batch.B * batch.S; ++row) {
    if (!batch.valid(row / batch.S, row % batch.S)) continue;
    const std::set<int64_t> ours = picks_of_row(oracle, row), theirs = picks_of_row(judged, row);
    const int64_t shared = std::count_if(theirs.begin(), theirs.end(),
                                         [&](int64_t pick) { return ours.contains(pick); });
    const int64_t differing = std::ssize(theirs) - shared;
    const bool same = differing == 0 && theirs.size() == ours.size();
    ++count.rows;
    count.differing_rows += same ? 0 : 1;
    count.elements += std::ssize(theirs);
    count.differing_elements += differing;
  }
  return count;
}

}  // namespace dsv32::harness
