#include "harness/judge/measure/lane_errors.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace dsv32::harness {
namespace {

constexpr int64_t kSample = 48;    // rows whose errors are compared with each other
constexpr size_t kFewestRows = 8;  // 28 pairs: fewer say nothing

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

}  // namespace

LaneErrors::LaneErrors(int64_t rows) : stride_(std::max<int64_t>(1, rows / kSample)) {}

void LaneErrors::add(const std::vector<double>& a, const std::vector<double>& b) {
  squares_.resize(std::max(squares_.size(), a.size()));
  const bool kept = rows_++ % stride_ == 0;
  if (kept) sample_.emplace_back(a.size());
  for (size_t i = 0; i < a.size(); ++i) {
    const double error = a[i] - b[i];
    squares_[i] += error * error;
    if (kept) sample_.back()[i] = error;
  }
}

std::vector<double> LaneErrors::rms() const {
  std::vector<double> out;
  for (const double square : squares_)
    out.push_back(std::sqrt(square / static_cast<double>(rows_)));
  return out;
}

double LaneErrors::modes() const {
  if (sample_.size() < kFewestRows) return 0;
  std::vector<double> sizes;
  for (const auto& error : sample_) sizes.push_back(dot(error, error));
  double common = 0, all = 0;
  for (size_t i = 0; i < sample_.size(); ++i)
    for (size_t j = 0; j < i; ++j) {
      common += std::pow(dot(sample_[i], sample_[j]), 2);
      all += sizes[i] * sizes[j];
    }
  return common > 0 && std::isfinite(all) ? all / common : 0;
}

void keep_larger_lanes(const std::vector<double>& others, std::vector<double>& lanes) {
  lanes.resize(std::max(lanes.size(), others.size()));
  for (size_t i = 0; i < others.size(); ++i) lanes[i] = std::max(lanes[i], others[i]);
}

double fewer_modes(double a, double b) { return a == 0 || b == 0 ? a + b : std::min(a, b); }

}  // namespace dsv32::harness
