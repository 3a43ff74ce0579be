#include "harness/judge/decisions/tokens.h"

#include <cmath>

#include "harness/judge/compare.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"

namespace dsv32::harness {
namespace {

constexpr char kName[] = "gen.tokens";

std::string place(int64_t b, int64_t step) {
  return "row " + std::to_string(b) + ", step " + std::to_string(step);
}

/// The queries whose logits gave a token that counts.
Batch emitting_queries(const Emitted& emitted) {
  const History& history = *emitted.history;
  Batch batch = history.batch();
  std::vector<int64_t> mask(batch.attention_mask.size(), 0);
  for (int64_t b = 0; b < batch.B; ++b)
    for (int64_t step = 0; step < history.counted(b); ++step)
      mask[b * batch.S + history.query(step)] = 1;
  batch.attention_mask = mask;
  return batch;
}

/// The logits of one query, by token.
class Logits {
 public:
  Logits(const HostTensor& all, const Row& row)
      : all_(all), vocab_(all.shape().back()), first_((row.b * all.shape()[1] + row.s) * vocab_) {}
  double at(int64_t token) const { return all_.at(first_ + token); }
  /// The first of the largest; -1 where one is no number.
  int64_t best() const {
    int64_t best = 0;
    for (int64_t token = 0; token < vocab_; ++token) {
      if (std::isnan(at(token))) return -1;
      if (at(token) > at(best)) best = token;
    }
    return best;
  }

 private:
  const HostTensor& all_;
  int64_t vocab_, first_;
};

class Tokens {
 public:
  Tokens(const Comparison& c, const Emitted& emitted, const Exposure* exposure)
      : c_(c), e_(emitted), queries_(emitting_queries(emitted)) {
    c_.batch = &queries_;
    if (exposure == nullptr) return;
    sure_ = exposure->without_exposed(c.tap);
  }

  Verdict judge() {
    const HostTensor* oracle = c_.yardstick.oracle;
    if (oracle == nullptr) return named(unmeasured(c_, Trust::missing, "no logits of the oracle"));
    check_form();
    const RowLayout layout(c_.tap, oracle->shape(), &queries_, nullptr, RowView::judged);
    const TapError error = measure_rows(c_, layout, nullptr);
    for (size_t i = 0; i < layout.rows().size(); ++i)
      if (!judge_step(layout.rows()[i], error, error.rows[i]))
        return named(unmeasured(c_, Trust::vacuous, kNotFinite));
    if (layout.rows().empty()) return named(unmeasured(c_, Trust::vacuous, "no step is judged"));
    return settled(static_cast<int64_t>(layout.rows().size()));
  }

 private:
  static Verdict named(Verdict verdict) {
    verdict.tap = kName;
    return verdict;
  }

  int64_t token(int64_t b, int64_t step) const {
    return static_cast<int64_t>(e_.tokens->at(b * e_.decoding.steps + step));
  }

  void note_wrong(const std::string& what, int64_t b, int64_t step, int64_t expected) {
    if (wrong_++ > 0) return;
    first_wrong_ = what;
    worst_wrong_ =
        Worst{{b, step}, step, static_cast<double>(expected), static_cast<double>(token(b, step))};
  }

  /// The rules that are exact: every token is one, and behind an end stands eos.
  void check_form() {
    const int64_t vocab = c_.config->vocab_size;
    for (int64_t b = 0; b < queries_.B; ++b) {
      const int64_t counted = e_.history->counted(b);
      for (int64_t step = 0; step < e_.decoding.steps; ++step) {
        const int64_t got = token(b, step);
        if (step < counted) {
          if (got < 0 || got >= vocab)
            note_wrong(place(b, step) + ": no token of the vocabulary", b, step, vocab - 1);
        } else if (got != *e_.decoding.eos) {
          note_wrong("eos ignored: row " + std::to_string(b) + " emitted eos " +
                         std::to_string(*e_.decoding.eos) + " at step " +
                         std::to_string(counted - 1) + " and goes on with " + std::to_string(got) +
                         " at step " + std::to_string(step),
                     b, step, *e_.decoding.eos);
        }
      }
    }
  }

  /// False when the oracle is not finite there.
  bool judge_step(const Row& row, const TapError& error, const RowError& noise) {
    const int64_t step = row.s - e_.history->query(0), got = token(row.b, step);
    const Logits oracle(*c_.yardstick.oracle, row);
    const int64_t best = oracle.best();
    if (best < 0 || !std::isfinite(oracle.at(best))) return false;
    if (got < 0 || got >= c_.config->vocab_size) return true;  // told by check_form
    if (c_.judged != nullptr) judge_own(row, step, got);
    if (oracle.at(got) == oracle.at(best)) return true;
    ++differing_;
    const double band = (oracle.at(best) - oracle.at(got)) /
                        (element_noise(error, noise, oracle.at(best), c_.dtype) +
                         element_noise(error, noise, oracle.at(got), c_.dtype));
    const bool sure = !sure_ || sure_->valid(row.b, row.s);
    if (!sure) {
      unsure_beyond_ += band <= limit_of("decision.band") ? 0 : 1;
      return true;
    }
    if (band <= band_ && worst_band_) return true;
    band_ = band;
    worst_band_ = Worst{{row.b, step}, step, static_cast<double>(best), static_cast<double>(got)};
    return true;
  }

  void judge_own(const Row& row, int64_t step, int64_t got) {
    const Logits own(*c_.judged, row);
    const int64_t best = own.best();
    if (best >= 0 && own.at(got) >= own.at(best)) return;
    if (not_best_++ == 0) {
      first_not_best_ = place(row.b, step);
      worst_own_ = Worst{{row.b, step}, step, static_cast<double>(best), static_cast<double>(got)};
    }
  }

  Verdict settled(int64_t steps) const {
    Verdict verdict = named(open_verdict(c_));
    verdict.checked = steps;
    verdict.measures.push_back({"exact", static_cast<double>(wrong_), 0,
                                "docs/formats.md 14: tokens of the vocabulary, eos behind an end"});
    if (c_.judged != nullptr)
      verdict.measures.push_back({"own logits", static_cast<double>(not_best_), 0,
                                  "a greedy token has the largest of the stored logits"});
    verdict.measures.push_back(by_limit("decision.band", band_));
    verdict.worst = wrong_ > 0 ? worst_wrong_ : not_best_ > 0 ? worst_own_ : worst_band_;
    verdict.note = summary(steps);
    verdict.choices = {steps, 0, differing_};
    settle(verdict);
    if (verdict.trust == Trust::pass && unsure_beyond_ > 0) {
      verdict.trust = Trust::undecided;
      verdict.note += "; " + std::to_string(unsure_beyond_) +
                      " of them follow a near-tie of a decision that is not in the file";
    }
    return verdict;
  }

  std::string summary(int64_t steps) const {
    if (wrong_ > 0) return first_wrong_;
    if (not_best_ > 0) return first_not_best_ + ": not the token of the largest of its own logits";
    return std::to_string(steps) + " steps; " + std::to_string(differing_) +
           " emit another token than the oracle";
  }

  Comparison c_;
  const Emitted& e_;
  Batch queries_;
  std::optional<Batch> sure_;  // without the rows that a turn of a decision may have moved
  int64_t wrong_ = 0, not_best_ = 0, differing_ = 0, unsure_beyond_ = 0;
  double band_ = 0;
  std::string first_wrong_, first_not_best_;
  std::optional<Worst> worst_wrong_, worst_own_, worst_band_;
};

}  // namespace

Verdict judge_tokens(const Comparison& c, const Emitted& emitted, const Exposure* exposure) {
  return Tokens(c, emitted, exposure).judge();
}

}  // namespace dsv32::harness
