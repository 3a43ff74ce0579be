#include <algorithm>
#include <numeric>

#include "harness/judge/structure/parts.h"

namespace dsv32::harness {
namespace {

using Order = std::vector<size_t>;  // lane i of the judged side is lane order[i] of the oracle

/// A named order of `n` lanes.
struct NamedOrder {
  std::string name;
  std::function<size_t(size_t lane, size_t n)> source;
};

const std::vector<NamedOrder>& even_orders() {
  static const std::vector<NamedOrder> all = {
      {"halves swapped", [](size_t i, size_t n) { return (i + n / 2) % n; }},
      {"de-interleaved (even lanes, then odd ones)",
       [](size_t i, size_t n) { return i < n / 2 ? 2 * i : 2 * (i - n / 2) + 1; }},
      {"interleaved (halves to pairs)",
       [](size_t i, size_t n) { return i % 2 == 0 ? i / 2 : n / 2 + i / 2; }},
      {"pairs swapped", [](size_t i, size_t) { return i ^ 1; }},
  };
  return all;
}

bool fits(const Sample& sample, const std::function<size_t(size_t)>& source) {
  return explains(sample, [&](size_t r, size_t i) { return sample.o[r][source(i)]; });
}

std::string shift_name(const Sample& sample, size_t n) {
  for (const size_t by : {size_t{1}, n - 1})
    if (fits(sample, [&](size_t i) { return (i + by) % n; }))
      return by == 1 ? "lanes moved down by one" : "lanes moved up by one";
  return "";
}

/// The oracle's lane that is a judged lane in every sampled row; n when there is none.
size_t source_of(const Sample& sample, size_t lane, const std::vector<bool>& taken) {
  constexpr double kClose = 1e-3;
  const size_t n = sample.lanes();
  size_t best = n;
  double least = INFINITY;
  for (size_t j = 0; j < n; ++j) {
    if (taken[j]) continue;
    double distance = 0, size = 0;
    for (size_t r = 0; r < sample.o.size(); ++r) {
      distance += std::pow(sample.k[r][lane] - sample.o[r][j], 2);
      size += std::pow(sample.k[r][lane], 2);
    }
    if (distance >= least || distance > kClose * kClose * size) continue;
    least = distance;
    best = j;
  }
  return best;
}

std::string permutation(const Sample& sample) {
  constexpr size_t kMostLanes = 256, kFewestRows = 4;
  const size_t n = sample.lanes();
  if (n > kMostLanes || sample.o.size() < kFewestRows) return "";
  std::vector<bool> taken(n, false);
  size_t moved = 0;
  for (size_t i = 0; i < n; ++i) {
    const size_t j = source_of(sample, i, taken);
    if (j == n) return "";
    taken[j] = true;
    moved += i != j ? 1 : 0;
  }
  if (moved == 0) return "";
  return std::to_string(moved) + " of " + std::to_string(n) + " lanes are permuted";
}

constexpr int64_t kMostPlaces = 256;  // of one head that are looked at

/// A tap with heads: [B,S,H,D], or [B,H,S,T] of the attention.
struct HeadAxis {
  explicit HeadAxis(const Shape& shape, bool attention)
      : heads(shape[attention ? 1 : 2]),
        outer(std::min(shape[0] * (attention ? 1 : shape[1]), kMostPlaces)),
        inner(shape[3] * (attention ? shape[2] : 1)) {}
  int64_t at(int64_t place, int64_t head, int64_t i) const {
    return (place * heads + head) * inner + i;
  }
  int64_t heads, outer, inner;
};

/// Squared length of one judged head.
double head_size(const Comparison& c, const HeadAxis& axis, int64_t head) {
  double sum = 0;
  for (int64_t place = 0; place < axis.outer; ++place)
    for (int64_t i = 0; i < axis.inner; ++i) {
      const double k = c.judged->at(axis.at(place, head, i));
      if (std::isfinite(k)) sum += k * k;
    }
  return sum;
}

/// Squared distance of one judged head from one of the oracle's; infinities that agree are none.
double head_distance(const Comparison& c, const HeadAxis& axis, int64_t judged, int64_t right) {
  double sum = 0;
  for (int64_t place = 0; place < axis.outer; ++place)
    for (int64_t i = 0; i < axis.inner; ++i) {
      const double k = c.judged->at(axis.at(place, judged, i));
      const double o = c.yardstick.oracle->at(axis.at(place, right, i));
      if (k != o) sum += (k - o) * (k - o);
    }
  return sum;
}

/// Whole heads in another order.
std::string heads_permuted(const Comparison& c) {
  constexpr int64_t kMostHeads = 64;
  constexpr double kLeft = 1e-6;
  const Shape& shape = c.yardstick.oracle->shape();
  if (shape.size() != 4 || c.judged->shape() != shape) return "";
  const HeadAxis axis(shape, c.tap.info.kind == TapKind::attention);
  if (axis.heads < 2 || axis.heads > kMostHeads) return "";
  std::vector<bool> taken(axis.heads, false);
  bool reversed = true;
  int64_t moved = 0;
  for (int64_t h = 0; h < axis.heads; ++h) {
    const double error = head_distance(c, axis, h, h);
    int64_t source = error <= kLeft * head_size(c, axis, h) ? h : -1;
    for (int64_t other = 0; other < axis.heads && source < 0; ++other)
      if (!taken[other] && other != h && head_distance(c, axis, h, other) <= kLeft * error)
        source = other;
    if (source < 0 || taken[source]) return "";
    taken[source] = true;
    moved += source != h ? 1 : 0;
    reversed = reversed && source == axis.heads - 1 - h;
  }
  if (moved == 0) return "";
  return reversed
             ? "heads in reverse order"
             : std::to_string(moved) + " of " + std::to_string(axis.heads) + " heads are permuted";
}

/// Rows of a [.., H, D] tap read as [.., D, H].
std::string transposed(const Comparison& c) {
  const Shape& shape = c.yardstick.oracle->shape();
  if (shape.size() < 2) return "";
  const int64_t H = shape[shape.size() - 2], D = shape.back(), plane = H * D;
  if (H < 2 || D < 2) return "";
  constexpr int64_t kMostPlanes = 64;
  const int64_t planes = c.yardstick.oracle->numel() / plane;
  double left = 0, error = 0;
  for (int64_t p = 0; p < std::min(planes, kMostPlanes); ++p)
    for (int64_t i = 0; i < plane; ++i) {
      const double k = c.judged->at(p * plane + i);
      const double o = c.yardstick.oracle->at(p * plane + (i % H) * D + i / H);
      const double right = c.yardstick.oracle->at(p * plane + i);
      if (!std::isfinite(o) || !std::isfinite(right)) return "";
      left += (k - o) * (k - o);
      error += (k - right) * (k - right);
    }
  constexpr double kLeft = 1e-6;
  return error > 0 && left <= kLeft * error ? "last two axes transposed" : "";
}

}  // namespace

std::string describe_lanes(const Comparison& c, const Sample& sample) {
  const size_t n = sample.lanes();
  if (const std::string heads = heads_permuted(c); !heads.empty()) return heads;
  if (n < 2 || c.tap.info.kind == TapKind::attention || c.tap.info.kind == TapKind::scores ||
      c.tap.info.kind == TapKind::keys)
    return "";
  if (n % 2 == 0)
    for (const NamedOrder& order : even_orders())
      if (fits(sample, [&](size_t i) { return order.source(i, n); })) return order.name;
  if (fits(sample, [n](size_t i) { return n - 1 - i; })) return "lanes reversed";
  for (const std::string& text : {shift_name(sample, n), transposed(c)})
    if (!text.empty()) return text;
  return permutation(sample);
}

}  // namespace dsv32::harness
