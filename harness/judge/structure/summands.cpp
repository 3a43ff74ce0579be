#include <algorithm>
#include <cmath>
#include <cstdio>

#include "harness/judge/limits.h"
#include "harness/judge/structure/parts.h"

namespace dsv32::harness {
namespace {

using Ranks = std::vector<int64_t>;

std::string listed(const Ranks& ranks) {
  std::string text = ranks.size() > 1 ? "ranks " : "rank ";
  for (size_t i = 0; i < ranks.size(); ++i)
    text += (i == 0 ? "" : i + 1 == ranks.size() ? " and " : ", ") + std::to_string(ranks[i]);
  return text;
}

/// Sums over the judged elements: of a summand p, of the error d = k - o, of the judged sum k.
struct Moments {
  double pp = 0, dp = 0, dd = 0, kk = 0, dk = 0;
  bool finite = true, zero = true;
};

Moments moments(const Comparison& c, const RowLayout& layout, const HostTensor& summand) {
  Moments m;
  std::vector<double> o, k, p;
  for (const Row& row : layout.rows()) {
    layout.gather(*c.yardstick.oracle, row, o);
    layout.gather(*c.judged, row, k);
    layout.gather(summand, row, p);
    for (size_t i = 0; i < o.size(); ++i) {
      m.finite = m.finite && std::isfinite(p[i]);
      m.zero = m.zero && p[i] == 0;
      const double d = k[i] - o[i];
      m.pp += p[i] * p[i];
      m.dp += d * p[i];
      m.dd += d * d;
      m.kk += k[i] * k[i];
      m.dk += d * k[i];
    }
  }
  return m;
}

/// The share of the squared error that a multiple of something leaves.
double left_by(double size, double product, double error) {
  return size > 0 ? std::max(error - product * product / size, 0.0) / error : 1;
}

class Summands {
 public:
  Summands(const Comparison& c, const RowLayout& layout) : layout_(layout) {
    for (const RankSummand& summand : *c.summands) {
      if (!summand.value.defined()) {
        absent_.push_back(summand.rank);
        continue;
      }
      there_.push_back(&summand);
      moments_.push_back(moments(c, layout, summand.value));
    }
  }

  std::string describe() const {
    for (const auto& say : {&Summands::not_finite, &Summands::scaled, &Summands::equal,
                            &Summands::zero, &Summands::missing})
      if (const std::string text = (this->*say)(); !text.empty()) return text;
    return "";
  }

 private:
  template <typename Is>
  Ranks ranks_that(const Is& is) const {
    Ranks ranks;
    for (size_t i = 0; i < there_.size(); ++i)
      if (is(moments_[i])) ranks.push_back(there_[i]->rank);
    return ranks;
  }

  std::string of(const Ranks& ranks, const std::string& what) const {
    const bool some = !ranks.empty() && ranks.size() < there_.size();
    if (!some) return "";
    return "the summand" + std::string(ranks.size() > 1 ? "s of " : " of ") + listed(ranks) + what;
  }

  std::string not_finite() const {
    const Ranks ranks = ranks_that([](const Moments& m) { return !m.finite; });
    return of(ranks,
              ranks.size() > 1 ? " hold NaN or infinite values" : " holds NaN or infinite values");
  }

  std::string zero() const {
    const Ranks ranks = ranks_that([](const Moments& m) { return m.zero; });
    return of(ranks, ranks.size() > 1 ? " are exactly zero" : " is exactly zero");
  }

  /// Of one rank alone: the error is a multiple of its summand, and of nothing else that is there.
  std::string scaled() const {
    const double most = limit_of("structure.summand");
    if (there_.empty() || !(moments_[0].dd > 0)) return "";
    if (left_by(moments_[0].kk, moments_[0].dk, moments_[0].dd) <= most) return "";  // all alike
    const Ranks ranks =
        ranks_that([&](const Moments& m) { return left_by(m.pp, m.dp, m.dd) <= most; });
    if (ranks.size() != 1 || there_.size() < 2) return "";
    const size_t at = static_cast<size_t>(
        std::find_if(there_.begin(), there_.end(),
                     [&](const RankSummand* s) { return s->rank == ranks[0]; }) -
        there_.begin());
    // k - o = p - right, so that right = (1 - a) p where k - o = a p.
    const double right = 1 - moments_[at].dp / moments_[at].pp, close = std::sqrt(most);
    if (std::fabs(right) <= close)
      return "the sum is right without the summand of " + listed(ranks);
    const double factor = 1 / right;
    const std::string text =
        "the summand of " + listed(ranks) + " is " + text_of(factor, close) + " x the right one";
    return std::fabs(factor - 2) <= close ? text + ": it enters twice" : text;
  }

  static std::string text_of(double value, double close) {
    const double nearest = std::round(value);
    if (nearest != 0 && std::fabs(value / nearest - 1) <= close) return harness::text_of(nearest);
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", value);
    return text;
  }

  /// The largest set of ranks that hand in the same values, which are not zero.
  std::string equal() const {
    Ranks largest;
    for (size_t i = 0; i < there_.size(); ++i) {
      if (moments_[i].zero) continue;
      Ranks same;
      for (const RankSummand* other : there_)
        if (identical(*there_[i], *other)) same.push_back(other->rank);
      if (same.size() > largest.size()) largest = same;
    }
    if (largest.size() < 2) return "";
    const bool all = largest.size() == there_.size();
    return (all ? "all ranks" : listed(largest)) + " hand in the same summand";
  }

  bool identical(const RankSummand& a, const RankSummand& b) const {
    std::vector<double> x, y;
    for (const Row& row : layout_.rows()) {
      layout_.gather(a.value, row, x);
      layout_.gather(b.value, row, y);
      if (x != y) return false;
    }
    return true;
  }

  std::string missing() const {
    return absent_.empty() || there_.empty() ? "" : listed(absent_) + " handed in no summand";
  }

  const RowLayout& layout_;
  std::vector<const RankSummand*> there_;
  std::vector<Moments> moments_;
  Ranks absent_;
};

}  // namespace

std::string describe_summands(const Comparison& c, const RowLayout& layout) {
  return c.summands == nullptr ? "" : Summands(c, layout).describe();
}

}  // namespace dsv32::harness
