#include "harness/judge/measure/lane_errors.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <numeric>

#include "harness/judge/measure/sum.h"

namespace dsv32::harness {
namespace {

constexpr int64_t kSample = 48;      // tokens whose errors are compared with each other
constexpr size_t kFewestTokens = 8;  // 28 pairs: fewer say nothing

double dot(const double* a, const double* b, size_t size) {
  return sum_of(size, [&](size_t i) { return a[i] * b[i]; });
}

/// 1 / mean squared cosine between two vectors, each weighed by its size.
class Cosines {
 public:
  void add(double product, double size_a, double size_b) {
    common_ += product * product;
    all_ += size_a * size_b;
  }
  double modes() const { return common_ > 0 && std::isfinite(all_) ? all_ / common_ : 0; }

 private:
  double common_ = 0, all_ = 0;
};

}  // namespace

LaneErrors::LaneErrors(int64_t tokens, int64_t first)
    : stride_(std::max<int64_t>(1, tokens / kSample)), tokens_(first) {}

void LaneErrors::append(LaneErrors other) {
  squares_.resize(std::max(squares_.size(), other.squares_.size()));
  for (size_t i = 0; i < other.squares_.size(); ++i) squares_[i] += other.squares_[i];
  rows_ += other.rows_;
  tokens_ = other.tokens_;
  length_ = other.length_;
  std::move(other.sample_.begin(), other.sample_.end(), std::back_inserter(sample_));
}

void LaneErrors::add(const std::vector<double>& a, const std::vector<double>& b, int64_t token) {
  squares_.resize(std::max(squares_.size(), a.size()));
  ++rows_;
  length_ = std::max<size_t>(a.size(), 1);
  const bool another_head = token >= 0 && token == token_;
  token_ = token;
  if (!another_head) ++tokens_;
  const bool kept = (tokens_ - 1) % stride_ == 0;
  if (kept && !another_head) sample_.emplace_back();
  for (size_t i = 0; i < a.size(); ++i) squares_[i] += (a[i] - b[i]) * (a[i] - b[i]);
  if (!kept) return;
  std::transform(a.begin(), a.end(), b.begin(), std::back_inserter(sample_.back()), std::minus<>());
}

std::vector<double> LaneErrors::rms() const {
  std::vector<double> out;
  for (const double square : squares_)
    out.push_back(std::sqrt(square / static_cast<double>(rows_)));
  return out;
}

Modes LaneErrors::modes() const {
  if (sample_.size() < kFewestTokens) return {};
  const size_t size = sample_.front().size(), heads = size / length_;
  Cosines rows, tokens;
  // Products and squared sizes of each head; those of a token are their sums.
  std::vector<std::vector<double>> squares;
  for (const auto& error : sample_) {
    std::vector<double>& of_heads = squares.emplace_back();
    for (size_t at = 0; at < size; at += length_)
      of_heads.push_back(dot(&error[at], &error[at], length_));
  }
  const auto sum = [](const std::vector<double>& v) { return std::reduce(v.begin(), v.end()); };
  for (size_t i = 0; i < sample_.size(); ++i)
    for (size_t j = 0; j < i; ++j) {
      double all = 0;
      for (size_t h = 0; h < heads; ++h) {
        const double product = dot(&sample_[i][h * length_], &sample_[j][h * length_], length_);
        rows.add(product, squares[i][h], squares[j][h]);
        all += product;
      }
      tokens.add(all, sum(squares[i]), sum(squares[j]));
    }
  return {rows.modes(), tokens.modes()};
}

void keep_larger_lanes(const std::vector<double>& others, std::vector<double>& lanes) {
  lanes.resize(std::max(lanes.size(), others.size()));
  for (size_t i = 0; i < others.size(); ++i) lanes[i] = std::max(lanes[i], others[i]);
}

double fewer(double a, double b) { return a == 0 || b == 0 ? a + b : std::min(a, b); }

Modes fewer(const Modes& a, const Modes& b) {
  return {fewer(a.row, b.row), fewer(a.token, b.token)};
}

}  // namespace dsv32::harness
