#include "harness/judge/structure/selection.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <vector>

#include "harness/judge/decisions/keys.h"

namespace dsv32::harness {
namespace {

struct Query {
  int64_t b = 0, s = 0;
  std::vector<int64_t> picks;    // without -1, as stored
  std::vector<int64_t> visible;  // ascending
  int64_t k = 0;                 // how many there should be
};

std::vector<Query> queries_of(const Comparison& c) {
  std::vector<Query> queries;
  const int64_t slots = c.judged->shape().back();
  for (int64_t b = 0; b < c.batch->B; ++b)
    for (int64_t s = 0; s < c.batch->S; ++s) {
      if (!c.batch->valid(b, s)) continue;
      Query& q = queries.emplace_back(Query{.b = b, .s = s, .picks = {}, .visible = {}});
      for (int64_t t = 0; t <= s; ++t)
        if (visible(*c.batch, b, s, t)) q.visible.push_back(t);
      q.k = std::min<int64_t>(c.config->index_topk, std::ssize(q.visible));
      for (int64_t i = 0; i < slots; ++i) {
        const auto t = static_cast<int64_t>(c.judged->at((b * c.batch->S + s) * slots + i));
        if (t != -1) q.picks.push_back(t);
      }
    }
  return queries;
}

using Test = bool (*)(const Comparison&, const Query&);

bool picks_future(const Comparison&, const Query& q) {
  return std::any_of(q.picks.begin(), q.picks.end(), [&](int64_t t) { return t > q.s; });
}

bool picks_padding(const Comparison& c, const Query& q) {
  return std::any_of(q.picks.begin(), q.picks.end(), [&](int64_t t) {
    return t >= 0 && t < c.batch->S && !c.batch->valid(q.b, t);
  });
}

bool picks_nothing_there(const Comparison& c, const Query& q) {
  return std::any_of(q.picks.begin(), q.picks.end(),
                     [&](int64_t t) { return t < 0 || t >= c.batch->S; });
}

bool picks_twice(const Comparison&, const Query& q) {
  return std::set<int64_t>(q.picks.begin(), q.picks.end()).size() != q.picks.size();
}

bool picks_too_few(const Comparison&, const Query& q) { return std::ssize(q.picks) < q.k; }
bool picks_too_many(const Comparison&, const Query& q) { return std::ssize(q.picks) > q.k; }

struct Rule {
  Test test;
  const char* words;
};
constexpr Rule kRules[] = {
    {picks_future, "select future keys"},
    {picks_padding, "select padding"},
    {picks_nothing_there, "select keys that do not exist"},
    {picks_twice, "select a key twice"},
    {picks_too_few, "select too few keys"},
    {picks_too_many, "select too many keys"},
};

bool chooses(const Query& q) { return std::ssize(q.visible) > q.k; }

/// Every row that has a choice picks so.
bool all_pick(const std::vector<Query>& queries,
              const std::function<std::set<int64_t>(const Query&)>& set_of) {
  int64_t choosing = 0;
  for (const Query& q : queries) {
    if (!chooses(q)) continue;
    ++choosing;
    if (std::set<int64_t>(q.picks.begin(), q.picks.end()) != set_of(q)) return false;
  }
  return choosing > 1;
}

/// Picks that ask no score.
std::string blind_choice(const std::vector<Query>& queries) {
  if (all_pick(queries, [](const Query& q) {
        return std::set<int64_t>(q.visible.end() - q.k, q.visible.end());
      }))
    return "every row selects the last visible keys";
  if (all_pick(queries, [](const Query& q) {
        return std::set<int64_t>(q.visible.begin(), q.visible.begin() + q.k);
      }))
    return "every row selects the first visible keys";
  return "";
}

std::vector<double> scores_of(const HostTensor& scores, const Query& q) {
  const int64_t S = scores.shape()[1], T = scores.shape()[2];
  std::vector<double> values;
  for (int64_t t = 0; t < T; ++t) values.push_back(scores.at((q.b * S + q.s) * T + t));
  return values;
}

/// No visible key that is left out has a better score (a worse one with `lowest`).
bool follows(const Query& q, const std::vector<double>& scores, bool lowest) {
  const std::set<int64_t> picked(q.picks.begin(), q.picks.end());
  const double sign = lowest ? -1 : 1;
  double least = INFINITY, most = -INFINITY;
  for (const int64_t t : q.visible) {
    double& bound = picked.contains(t) ? least : most;
    bound =
        picked.contains(t) ? std::min(bound, sign * scores[t]) : std::max(bound, sign * scores[t]);
  }
  return least >= most;
}

std::string against_scores(const std::vector<Query>& queries, const HostTensor& scores,
                           const char* whose) {
  int64_t choosing = 0, wrong = 0, lowest = 0;
  for (const Query& q : queries) {
    if (!chooses(q)) continue;
    const std::vector<double> values = scores_of(scores, q);
    ++choosing;
    wrong += follows(q, values, false) ? 0 : 1;
    lowest += follows(q, values, true) ? 1 : 0;
  }
  if (wrong == 0 || choosing == 0) return "";
  if (lowest == choosing && choosing > 1)
    return std::string("every row selects the lowest of ") + whose + " scores";
  return std::to_string(wrong) + " of " + std::to_string(choosing) +
         " rows do not select the best of " + whose + " scores";
}

}  // namespace

std::string describe_selection(const Comparison& c, const HostTensor* own_scores) {
  const std::vector<Query> queries = queries_of(c);
  std::string text;
  const auto add = [&](const std::string& part) {
    if (!part.empty()) text += (text.empty() ? "" : "; ") + part;
  };
  for (const Rule& rule : kRules) {
    const auto count = std::count_if(queries.begin(), queries.end(),
                                     [&](const Query& q) { return rule.test(c, q); });
    if (count > 0)
      add(std::to_string(count) + " of " + std::to_string(queries.size()) + " rows " + rule.words);
  }
  add(blind_choice(queries));
  if (!text.empty()) return text;
  const std::string selector =
      own_scores != nullptr ? against_scores(queries, *own_scores, "their own") : "";
  if (!selector.empty()) return selector + ": the selector is wrong, not the scores";
  return own_scores != nullptr ? "the sets follow from the tap's own scores: the scores are wrong"
                               : "";
}

}  // namespace dsv32::harness
