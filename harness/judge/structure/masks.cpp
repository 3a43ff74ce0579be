#include <algorithm>
#include <array>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "harness/judge/structure/parts.h"

namespace dsv32::harness {
namespace {

/// A key as a query meets it. `hidden`: the judged side masks it, though it counts.
struct Pair {
  int64_t b = 0, s = 0, t = 0;
  bool hidden = false;
};

/// No logit or score is so low, masked ones are: -inf, or the lowest number of their type, alone or
/// added to the value.
constexpr double kMasked = -1e30;

bool is_probability(const TapName& tap) { return tap.full.ends_with("attn.probs"); }

bool is_masked(const TapName& tap, double judged, double right) {
  constexpr double kVanished = 1e-12;  // a probability that may have come to nothing by itself
  return is_probability(tap) ? judged == 0 && right > kVanished : !(judged > kMasked);
}

/// Every pair that counts. Empty where a NaN is among them, which no mask is.
std::vector<Pair> pairs_of(const Comparison& c, const RowLayout& layout) {
  std::vector<Pair> pairs;
  std::vector<double> o, k;
  for (const Row& row : layout.rows()) {
    layout.gather(*c.yardstick.oracle, row, o);
    layout.gather(*c.judged, row, k);
    const uint8_t* counts = layout.keys(row);
    for (size_t t = 0; t < o.size(); ++t) {
      if ((counts != nullptr && counts[t] == 0) || !std::isfinite(o[t])) continue;
      if (std::isnan(k[t])) return {};
      pairs.push_back({row.b, row.s, static_cast<int64_t>(t), is_masked(c.tap, k[t], o[t])});
    }
  }
  return pairs;
}

/// A rule that hides keys, with the number in it that fits the pairs best.
struct Rule {
  std::string words;
  std::function<bool(const Pair&)> hides;
};

std::string plural(int64_t n, const std::string& one) {
  return n == 1 ? one : std::to_string(n) + " " + one + "s";
}

/// What could hide these pairs: their own numbers say how far each rule would have to reach.
std::vector<Rule> rules_for(const std::vector<const Pair*>& hidden) {
  int64_t nearest = INT64_MAX, farthest = 0, last = 0;
  std::set<int64_t> keys;
  for (const Pair* p : hidden) {
    nearest = std::min(nearest, p->s - p->t);
    farthest = std::max(farthest, p->s - p->t);
    last = std::max(last, p->t);
    keys.insert(p->t);
  }
  std::vector<Rule> rules;
  if (farthest == 0)
    rules.push_back({"the query's own key", [](const Pair& p) { return p.s == p.t; }});
  if (nearest > 0)
    rules.push_back({"keys " + plural(nearest, "token") + " and more behind the query",
                     [nearest](const Pair& p) { return p.s - p.t >= nearest; }});
  rules.push_back({"keys fewer than " + plural(farthest + 1, "token") + " behind the query",
                   [farthest](const Pair& p) { return p.s - p.t <= farthest; }});
  constexpr size_t kMostKeys = 3;
  if (keys.size() <= kMostKeys) {
    std::string list;
    for (const int64_t t : keys) list += (list.empty() ? "" : ", ") + std::to_string(t);
    rules.push_back({(keys.size() == 1 ? "key " : "keys ") + list,
                     [keys](const Pair& p) { return keys.contains(p.t); }});
  }
  rules.push_back(
      {"keys up to " + std::to_string(last), [last](const Pair& p) { return p.t <= last; }});
  return rules;
}

/// The rule that hides these pairs and no others, in all queries or from one on.
std::string name_rule(const std::vector<Pair>& pairs, const std::vector<const Pair*>& hidden) {
  int64_t first = INT64_MAX;
  for (const Pair* p : hidden) first = std::min(first, p->s);
  for (const Rule& rule : rules_for(hidden)) {
    bool everywhere = true, from_first = true;
    for (const Pair& p : pairs) {
      if (rule.hides(p) == p.hidden) continue;
      everywhere = false;
      from_first = from_first && p.s < first;
    }
    if (everywhere) return rule.words;
    if (from_first) return rule.words + ", in queries from " + std::to_string(first) + " on";
  }
  return "";
}

std::string name_hidden(const std::vector<Pair>& pairs) {
  std::vector<const Pair*> hidden;
  for (const Pair& p : pairs)
    if (p.hidden) hidden.push_back(&p);
  if (hidden.empty()) return "";
  const std::string text = std::to_string(hidden.size()) + " of " + std::to_string(pairs.size()) +
                           " keys that count are masked";
  if (hidden.size() == pairs.size()) return text;
  const std::string rule = name_rule(pairs, hidden);
  return rule.empty() ? text : text + ": " + rule;
}

/// Keys that do not count and have a share in the judged side all the same. Logits may have any
/// value there.
std::string name_shown(const Comparison& c, const RowLayout& layout) {
  const bool probability = is_probability(c.tap);
  if (c.batch == nullptr || (!probability && c.tap.info.kind != TapKind::scores)) return "";
  constexpr std::array kKinds = {"future keys", "padding", "keys that are not selected"};
  std::array<int64_t, kKinds.size()> rows = {};
  const int64_t T = layout.shape().back();
  for (const Row& row : layout.rows()) {
    const uint8_t* counts = layout.keys(row);
    if (counts == nullptr) return "";
    std::array<bool, kKinds.size()> shown = {};
    for (int64_t t = 0; t < T; ++t) {
      if (counts[t] != 0 || !(c.judged->at(row.first + t) > (probability ? 0 : kMasked))) continue;
      const bool real = t < c.batch->S && c.batch->valid(row.b, t);
      shown[t > row.s ? 0 : real ? 2 : 1] = true;
    }
    for (size_t kind = 0; kind < rows.size(); ++kind) rows[kind] += shown[kind] ? 1 : 0;
  }
  std::string text;
  for (size_t kind = 0; kind < rows.size(); ++kind)
    if (rows[kind] > 0)
      text += (text.empty() ? "" : "; ") + std::to_string(rows[kind]) + " of " +
              std::to_string(layout.rows().size()) +
              (probability ? " rows attend to " : " rows score ") + kKinds[kind];
  return text;
}

}  // namespace

std::string describe_mask(const Comparison& c, const RowLayout& layout) {
  const TapKind kind = c.tap.info.kind;
  if (parse_slope(c.tap.full)) return "";  // a gradient is of any size, whatever was masked
  if (kind != TapKind::attention && kind != TapKind::scores) return "";
  return joined({name_hidden(pairs_of(c, layout)), name_shown(c, layout)});
}

}  // namespace dsv32::harness
