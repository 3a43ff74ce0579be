#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "harness/judge/structure/parts.h"

namespace dsv32::harness {
namespace {

double silu(double x) { return x / (1 + std::exp(-x)); }

struct Function {
  const char* name;
  double (*of)(double);
};
constexpr Function kFunctions[] = {
    {"its absolute value", [](double x) { return std::fabs(x); }},
    {"its ReLU", [](double x) { return std::max(x, 0.0); }},
    {"its square", [](double x) { return x * x; }},
    {"its SiLU", silu},
    {"its sigmoid", [](double x) { return 1 / (1 + std::exp(-x)); }},
    {"its exponential", [](double x) { return std::exp(x); }},
    {"its tanh", [](double x) { return std::tanh(x); }},
};

std::string one_value(const Sample& sample) {
  const double first = sample.k.front().front();
  for (const auto& row : sample.k)
    for (const double x : row)
      if (x != first) return "";
  return "every value is " + text_of(first);
}

std::string one_row(const Sample& sample) {
  if (sample.k.size() < 2) return "";
  for (const auto& row : sample.k)
    if (row != sample.k.front()) return "";
  return "all rows are the same";
}

std::string clipped(const Sample& sample) {
  double bound = 0, widest = 0;
  for (size_t r = 0; r < sample.k.size(); ++r)
    for (size_t i = 0; i < sample.k[r].size(); ++i) {
      bound = std::max(bound, std::fabs(sample.k[r][i]));
      widest = std::max(widest, std::fabs(sample.o[r][i]));
    }
  if (!(bound < widest)) return "";
  const bool fits = explains(
      sample, [&](size_t r, size_t i) { return std::clamp(sample.o[r][i], -bound, bound); });
  return fits ? "clipped at " + text_of(bound) : "";
}

std::string softmaxed(const Sample& sample) {
  std::vector<double> largest, sums;
  for (const auto& row : sample.o) {
    largest.push_back(*std::max_element(row.begin(), row.end()));
    sums.push_back(std::accumulate(row.begin(), row.end(), 0.0, [&](double sum, double x) {
      return sum + std::exp(x - largest.back());
    }));
  }
  const bool fits = explains(
      sample, [&](size_t r, size_t i) { return std::exp(sample.o[r][i] - largest[r]) / sums[r]; });
  return fits ? "the values are the softmax of the right ones" : "";
}

std::string function_of_right(const Sample& sample) {
  for (const Function& f : kFunctions)
    if (explains(sample, [&](size_t r, size_t i) { return f.of(sample.o[r][i]); }))
      return std::string("every value is ") + f.name;
  return "";
}

/// Each lane off by one number in all rows.
std::string lane_shift(const Sample& sample) {
  constexpr size_t kFewestRows = 4;
  if (sample.o.size() < kFewestRows || sample.lanes() < 2) return "";
  std::vector<double> shift(sample.lanes(), 0);
  for (size_t r = 0; r < sample.o.size(); ++r)
    for (size_t i = 0; i < shift.size(); ++i)
      shift[i] += (sample.k[r][i] - sample.o[r][i]) / static_cast<double>(sample.o.size());
  const bool fits = explains(sample, [&](size_t r, size_t i) { return sample.o[r][i] + shift[i]; });
  return fits ? "each lane is off by a constant of its own (a bias missing or added)" : "";
}

/// Of the whole judged tensor: numbers that a 16-bit type holds.
std::string coarse_numbers(const Comparison& c) {
  if (c.judged->dtype() != DType::float32) return "";
  constexpr int64_t kFewest = 16;
  const auto values = c.judged->data<float>();
  bool bfloat = true, half = true;
  int64_t counted = 0;
  for (const float x : values) {
    if (x == 0 || !std::isfinite(x)) continue;
    ++counted;
    bfloat = bfloat && bfloat16_to_float(float_to_bfloat16(x)) == x;
    half = half && float16_to_float(float_to_float16(x)) == x;
    if (!bfloat && !half) return "";
  }
  if (counted < kFewest) return "";
  return bfloat ? "every value is a bfloat16 number (the low 16 bits are zero)"
                : "every value is a float16 number";
}

}  // namespace

std::string describe_values(const Comparison& c, const RowLayout&, const Sample& sample) {
  if (sample.k.empty() || sample.lanes() == 0) return "";
  std::string text = sample.lanes() > 1 || sample.k.size() > 1 ? one_value(sample) : "";
  if (text.empty()) text = one_row(sample);
  const bool keys = c.tap.info.kind == TapKind::attention || c.tap.info.kind == TapKind::keys ||
                    c.tap.info.kind == TapKind::scores;
  if (text.empty() && !keys && sample.lanes() > 1) {
    for (const auto& part : {clipped, function_of_right, softmaxed, lane_shift})
      if (text.empty()) text = part(sample);
  }
  const std::string coarse = coarse_numbers(c);
  return text.empty() || coarse.empty() ? text + coarse : text + "; " + coarse;
}

}  // namespace dsv32::harness
