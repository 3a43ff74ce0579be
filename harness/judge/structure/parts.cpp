#include "harness/judge/structure/parts.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

namespace dsv32::harness {
namespace {

/// More rows say no more about lanes and values.
constexpr size_t kMostRows = 512;

std::vector<size_t> worst_rows(const TapError& error) {
  std::vector<size_t> rows(error.rows.size());
  std::iota(rows.begin(), rows.end(), 0);
  if (rows.size() <= kMostRows) return rows;
  std::stable_sort(rows.begin(), rows.end(),
                   [&](size_t a, size_t b) { return error.rows[a].judged > error.rows[b].judged; });
  rows.resize(kMostRows);
  std::sort(rows.begin(), rows.end());
  return rows;
}

}  // namespace

Sample take_sample(const Comparison& c, const RowLayout& layout, const TapError& error) {
  Sample sample;
  for (const size_t r : worst_rows(error)) {
    const Row& row = layout.rows()[r];
    sample.rows.push_back(&row);
    layout.gather(*c.yardstick.oracle, row, sample.o.emplace_back());
    layout.gather(*c.judged, row, sample.k.emplace_back());
    for (size_t i = 0; i < sample.o.back().size(); ++i) {
      double &o = sample.o.back()[i], &k = sample.k.back()[i];
      if (!std::isfinite(o)) o = k = 0;  // keys that are not visible
      sample.error += (k - o) * (k - o);
    }
  }
  return sample;
}

bool explains(const Sample& sample, const Guess& guess) {
  constexpr double kLeft = 1e-3;      // of the error
  constexpr double kOfValues = 1e-2;  // of the values
  double left = 0, size = 0;
  for (size_t r = 0; r < sample.o.size(); ++r)
    for (size_t i = 0; i < sample.o[r].size(); ++i) {
      left += std::pow(sample.k[r][i] - guess(r, i), 2);
      size += sample.k[r][i] * sample.k[r][i];
    }
  return sample.error > 0 && left <= kLeft * kLeft * sample.error &&
         left <= kOfValues * kOfValues * size;
}

std::string joined(std::initializer_list<std::string> phrases) {
  std::string text;
  for (const std::string& phrase : phrases)
    if (!phrase.empty()) text += (text.empty() ? "" : "; ") + phrase;
  return text;
}

std::string text_of(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

}  // namespace dsv32::harness
