#include "harness/judge/structure/match.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>

#include "harness/judge/structure/parts.h"

namespace dsv32::harness {
namespace {

constexpr double kClose = 1e-4;  // relative: far above rounding, far below two taps by chance

/// Squared distance over squared size of the first, over rows that are no padding; `shift`: row s
/// of a against row s - shift of b.
double distance(const Batch& batch, const HostTensor& a, const HostTensor& b, int64_t shift) {
  const int64_t length = a.numel() / (batch.B * batch.S);
  double gap = 0, size = 0;
  for (int64_t bb = 0; bb < batch.B; ++bb)
    for (int64_t s = 0; s < batch.S; ++s) {
      const int64_t other = s - shift;
      if (other < 0 || other >= batch.S) continue;
      if (!batch.valid(bb, s) || !batch.valid(bb, other)) continue;
      for (int64_t i = 0; i < length; ++i) {
        const double x = a.at((bb * batch.S + s) * length + i);
        const double y = b.at((bb * batch.S + other) * length + i);
        if (x == y) continue;
        if (!std::isfinite(x) || !std::isfinite(y)) return INFINITY;
        gap += (x - y) * (x - y);
        size += x * x;
      }
    }
  return gap == 0 ? 0 : size > 0 ? std::sqrt(gap / size) : INFINITY;
}

bool by_token(const TapName& tap) {
  return tap.info.kind == TapKind::token || tap.info.kind == TapKind::key;
}

bool all_zero(const HostTensor& tensor) {
  for (int64_t i = 0; i < tensor.numel(); ++i)
    if (tensor.at(i) != 0) return false;
  return true;
}

std::string of_other_row(const Comparison& c) {
  for (const int64_t shift : {1, -1}) {
    if (distance(*c.batch, *c.judged, *c.yardstick.oracle, shift) > kClose) continue;
    return shift == 1 ? "each row is that of the token before"
                      : "each row is that of the token after";
  }
  return "";
}

std::string of_other_tap(const Comparison& c, const Trace& oracle) {
  for (const std::string& name : oracle.names()) {
    const HostTensor& other = *oracle.find(name);
    const auto tap = parse_tap(name);
    if (name == c.tap.full || !tap || !by_token(*tap) || other.shape() != c.judged->shape())
      continue;
    if (distance(*c.batch, *c.judged, other, 0) <= kClose) return "its values are those of " + name;
  }
  return "";
}

std::string of_own_dump(const Comparison& c, const Trace& judged) {
  for (const std::string& name : judged.names())
    if (name != c.tap.full && judged.find(name)->identical(*c.judged))
      return "the same bits as " + name + " of the same file";
  return "";
}

/// mlp.out = a routed + b shared, by least squares over the judged side's own taps.
std::string of_experts(const Comparison& c, const Trace& judged) {
  if (c.tap.info.name != "mlp.out") return "";
  const HostTensor* routed = judged.find(layer_tap(*c.tap.layer, "moe.routed"));
  const HostTensor* shared = judged.find(layer_tap(*c.tap.layer, "moe.shared"));
  if (routed == nullptr || shared == nullptr) return "";
  double rr = 0, rs = 0, ss = 0, kr = 0, ks = 0, kk = 0;
  for (int64_t i = 0; i < c.judged->numel(); ++i) {
    const double r = routed->at(i), s = shared->at(i), k = c.judged->at(i);
    rr += r * r, rs += r * s, ss += s * s, kr += k * r, ks += k * s, kk += k * k;
  }
  const double determinant = rr * ss - rs * rs;
  if (!(determinant > 0)) return "";
  const double a = (kr * ss - ks * rs) / determinant, b = (ks * rr - kr * rs) / determinant;
  const double left = kk - a * kr - b * ks;
  if (!(left <= kClose * kClose * kk)) return "";
  return "it is " + text_of(a) + " x routed + " + text_of(b) + " x shared";
}

/// Failing tokens, and no others, go to one expert.
std::string of_expert(const Comparison& c, const Trace& judged) {
  if (c.tap.info.name != "moe.routed" && c.tap.info.name != "mlp.out") return "";
  const HostTensor* experts = judged.find(layer_tap(*c.tap.layer, "router.experts"));
  if (experts == nullptr) return "";
  const int64_t K = experts->shape().back(), length = c.judged->shape().back();
  std::set<int64_t> of_failing, of_others;
  bool first = true;
  int64_t failing = 0;
  for (int64_t row = 0; row < c.batch->B * c.batch->S; ++row) {
    if (!c.batch->valid(row / c.batch->S, row % c.batch->S)) continue;
    double gap = 0, size = 0;
    for (int64_t i = row * length; i < (row + 1) * length; ++i) {
      gap += std::pow(c.judged->at(i) - c.yardstick.oracle->at(i), 2);
      size += std::pow(c.yardstick.oracle->at(i), 2);
    }
    std::set<int64_t> chosen;
    for (int64_t i = 0; i < K; ++i) chosen.insert(static_cast<int64_t>(experts->at(row * K + i)));
    if (!(gap > kClose * kClose * size)) {
      of_others.insert(chosen.begin(), chosen.end());
      continue;
    }
    ++failing;
    std::set<int64_t> common;
    std::set_intersection(of_failing.begin(), of_failing.end(), chosen.begin(), chosen.end(),
                          std::inserter(common, common.end()));
    of_failing = first ? chosen : common;
    first = false;
  }
  for (const int64_t e : of_failing)
    if (!of_others.contains(e) && failing > 1)
      return "the " + std::to_string(failing) + " failing tokens are those of expert " +
             std::to_string(e);
  return "";
}

}  // namespace

std::string describe_match(const Comparison& c, const Trace& oracle, const Trace& judged) {
  if (c.batch == nullptr || c.yardstick.oracle == nullptr || c.judged == nullptr) return "";
  if (c.judged->shape() != c.yardstick.oracle->shape() || all_zero(*c.judged)) return "";
  if (!by_token(c.tap)) return of_own_dump(c, judged);
  std::string text = of_other_tap(c, oracle);
  for (const std::string& part :
       {of_own_dump(c, judged), of_other_row(c), of_experts(c, judged), of_expert(c, judged)})
    if (text.empty()) text = part;
  return text;
}

}  // namespace dsv32::harness
