#include "harness/cases/rank_shares.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>

#include "harness/judge/limits.h"
#include "harness/judge/measure/rows.h"

namespace dsv32::harness {
namespace {

/// Of the experts or the heads, which ones a rank has.
struct Split {
  const char* what;  // "experts"
  std::function<bool(int64_t rank, int64_t index)> has;
  std::function<std::string(int64_t rank)> words;
};

std::vector<Split> splits_of(const std::string& what, int64_t count, int64_t world) {
  if (count % world != 0) return {};
  const int64_t share = count / world;
  const char* name = what == "moe.routed" ? "experts" : "heads";
  std::vector<Split> splits = {
      {name, [share](int64_t rank, int64_t index) { return index / share == rank; },
       [name, share](int64_t rank) {
         return std::string(name) + " " + std::to_string(rank * share) + " to " +
                std::to_string((rank + 1) * share - 1);
       }}};
  if (what == "moe.routed" && share > 1)
    splits.push_back({name, [world](int64_t rank, int64_t index) { return index % world == rank; },
                      [name, world](int64_t rank) {
                        return std::string(name) + " " + std::to_string(rank) + ", " +
                               std::to_string(rank + world) + ", ...";
                      }});
  return splits;
}

/// What the ops read, with zeros for what this rank does not have.
Trace of_rank(const Trace& fed, const ModelConfig& config, const Split& split, int64_t rank) {
  Trace own = fed;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const bool experts = std::string(split.what) == "experts";
    const std::string name = layer_tap(layer, experts ? "router.weights" : "attn.ctx");
    const HostTensor* chosen = fed.find(layer_tap(layer, "router.experts"));
    const HostTensor* input = fed.find(name);
    if (input == nullptr || (experts && chosen == nullptr)) continue;
    std::vector<double> values = input->to_doubles();
    for (size_t i = 0; i < values.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      const int64_t index = experts ? static_cast<int64_t>(chosen->at(at))
                                    : at / config.v_head_dim % config.num_attention_heads;
      if (!split.has(rank, index)) values[i] = 0;
    }
    own.put(name, HostTensor::from_doubles(input->dtype(), input->shape(), values));
  }
  return own;
}

struct Products {
  double ee = 0, pe = 0, pp = 0;  // of a summand p and what it should be, e
  double relative() const {
    const double error = std::max(pp - 2 * pe + ee, 0.0);
    return ee > 0 ? std::sqrt(error / ee) : error > 0 ? INFINITY : 0;
  }
};

class RankShares {
 public:
  RankShares(const CaseRun& run, const JudgedTrace& judged, const std::vector<Verdict>& staged)
      : run_(run), judged_(judged), config_(run.the_case().config) {
    for (const Verdict& verdict : staged) {
      const auto tap = parse_tap(verdict.tap);
      const bool known = tap && (tap->info.name == "moe.routed" || tap->info.name == "attn.out");
      if (known && verdict.trust == Trust::fail && summands_of(judged.sums, verdict.tap) != nullptr)
        failing_.push_back(verdict.tap);
    }
  }

  void tell(std::vector<Verdict>& staged) {
    for (const char* what : {"moe.routed", "attn.out"}) {
      const auto taps = of_kind(what);
      if (taps.empty()) continue;
      const auto world = std::ssize(*summands_of(judged_.sums, taps.front()));
      constexpr int64_t kMost = 16;
      if (world > kMost) continue;
      const bool experts = std::string(what) == "moe.routed";
      const int64_t count = experts ? config_.n_routed_experts : config_.num_attention_heads;
      for (const Split& split : splits_of(what, count, world))
        if (tell(split, world, taps, staged)) break;
    }
  }

 private:
  std::vector<std::string> of_kind(const std::string& what) const {
    std::vector<std::string> taps;
    for (const std::string& tap : failing_)
      if (parse_tap(tap)->info.name == what) taps.push_back(tap);
    return taps;
  }

  bool tell(const Split& split, int64_t world, const std::vector<std::string>& taps,
            std::vector<Verdict>& staged) {
    expected_.clear();
    for (int64_t rank = 0; rank < world; ++rank) {
      const Trace fed = of_rank(fed_by_judged(), config_, split, rank);
      expected_.push_back(run_.run({.dtype = DType::float64,
                                    .dialect = judged_.dialect,
                                    .feeding = Feeding::staged,
                                    .feed = &fed,
                                    .wanted =
                                        [&](const std::string& name) {
                                          return std::find(taps.begin(), taps.end(), name) !=
                                                 taps.end();
                                        }},
                                   "what rank " + std::to_string(rank) + " should add"));
    }
    bool told = false;
    for (Verdict& verdict : staged) {
      if (std::find(taps.begin(), taps.end(), verdict.tap) == taps.end()) continue;
      const std::string words = wrong_ranks(split, world, verdict.tap);
      if (words.empty()) continue;
      verdict.structure = words + (verdict.structure.empty() ? "" : "; " + verdict.structure);
      told = true;
    }
    return told;
  }

  const Trace& fed_by_judged() const {
    return judged_.fed != nullptr ? *judged_.fed : *judged_.trace;
  }

  std::string wrong_ranks(const Split& split, int64_t world, const std::string& tap) const {
    const std::vector<RankSummand>& summands = *summands_of(judged_.sums, tap);
    std::string words;
    int64_t wrong = 0;
    for (int64_t rank = 0; rank < world; ++rank) {
      const RankSummand& summand = summands[static_cast<size_t>(rank)];
      const std::string how = summand.value.defined() ? how_wrong(split, tap, summand) : "missing";
      if (how.empty()) continue;
      ++wrong;
      words += (words.empty() ? "" : "; ") + std::string("rank ") + std::to_string(summand.rank) +
               "'s " + split.words(rank) + ": its summand is " + how;
    }
    return 2 * wrong <= world ? words : "";
  }

  Products products(const std::string& tap, const HostTensor& summand, size_t rank) const {
    const TapName name = *parse_tap(tap);
    const HostTensor& expected = *expected_[rank].find(tap);
    const RowLayout layout(name, expected.shape(), &run_.batch_of(judged_), nullptr,
                           RowView::judged);
    Products sums;
    std::vector<double> p, e;
    for (const Row& row : layout.rows()) {
      layout.gather(summand, row, p);
      layout.gather(expected, row, e);
      for (size_t i = 0; i < p.size(); ++i) {
        sums.ee += e[i] * e[i];
        sums.pe += p[i] * e[i];
        sums.pp += p[i] * p[i];
      }
    }
    return sums;
  }

  bool right(const Products& sums) const {
    return by_limit("pair.relative", {.dtype = judged_.dtype}, sums.relative()).within();
  }

  /// "" when it is right.
  std::string how_wrong(const Split& split, const std::string& tap,
                        const RankSummand& summand) const {
    const auto rank = static_cast<size_t>(summand.rank);
    const Products own = products(tap, summand.value, rank);
    if (right(own)) return "";
    if (!std::isfinite(own.pp)) return "not finite";
    if (own.pp == 0) return "exactly zero";
    for (size_t other = 0; other < expected_.size(); ++other)
      if (other != rank && right(products(tap, summand.value, other)))
        return "that of " + split.words(static_cast<int64_t>(other));
    const double gain = own.ee > 0 ? own.pe / own.ee : 0;
    const Products scaled{.ee = gain * gain * own.ee, .pe = gain * own.pe, .pp = own.pp};
    char text[64];
    if (gain != 0 && right(scaled)) {
      std::snprintf(text, sizeof text, "%.4g x the right one", gain);
    } else {
      std::snprintf(text, sizeof text, "%.3g %% off", 100 * own.relative());
    }
    return text;
  }

  const CaseRun& run_;
  const JudgedTrace& judged_;
  const ModelConfig& config_;
  std::vector<std::string> failing_;
  std::vector<Trace> expected_;  // by rank
};

}  // namespace

void tell_wrong_summands(const CaseRun& run, const JudgedTrace& judged,
                         std::vector<Verdict>& staged) {
  if (judged.sums == nullptr || judged.sums->empty()) return;
  RankShares(run, judged, staged).tell(staged);
}

}  // namespace dsv32::harness
