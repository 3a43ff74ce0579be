#include <algorithm>
#include <array>
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

/// A 16-bit type, by the numbers that it holds.
struct NarrowType {
  DType dtype;
  float (*rounded)(float);
};
constexpr NarrowType kNarrowTypes[] = {
    {DType::bfloat16, [](float x) { return bfloat16_to_float(float_to_bfloat16(x)); }},
    {DType::float16, [](float x) { return float16_to_float(float_to_float16(x)); }},
};

/// The first type that holds every value of the judged tensor; nullptr: none.
const NarrowType* type_of_values(const HostTensor& judged) {
  constexpr int64_t kFewest = 16;
  if (judged.dtype() != DType::float32) return nullptr;
  const auto values = judged.data<float>();
  const auto counts = [](float x) { return x != 0 && std::isfinite(x); };
  if (std::count_if(values.begin(), values.end(), counts) < kFewest) return nullptr;
  for (const NarrowType& type : kNarrowTypes)
    if (std::all_of(values.begin(), values.end(),
                    [&](float x) { return !counts(x) || type.rounded(x) == x; }))
      return &type;
  return nullptr;
}

/// How far the sampled values are from the right ones, in steps of the type at the right value.
struct StepsOff {
  double rms = 0;
  double away = 0;  // mean away from zero: a gain has one, roundings have none
};
StepsOff steps_off(const Sample& sample, const NarrowType& type) {
  StepsOff off;
  int64_t counted = 0;
  for (size_t r = 0; r < sample.o.size(); ++r)
    for (size_t i = 0; i < sample.o[r].size(); ++i) {
      const double right = sample.o[r][i];
      if (right == 0 || !std::isfinite(right)) continue;
      const double steps = (sample.k[r][i] - right) / ulp_at(right, type.dtype);
      off.rms += steps * steps;
      off.away += right > 0 ? steps : -steps;
      ++counted;
    }
  const auto n = static_cast<double>(std::max<int64_t>(counted, 1));
  return {std::sqrt(off.rms / n), off.away / n};
}

/// Numbers of a 16-bit type, and whether the result alone was rounded to it. One rounding is off by
/// 0.29 steps on average; a sum that is rounded on its way by some steps, to no side.
std::string coarse_numbers(const Comparison& c, const Sample& sample) {
  constexpr double kOneRounding = 0.75, kSummed = 1.5, kMostSteps = 64, kToNoSide = 0.3;
  const NarrowType* type = type_of_values(*c.judged);
  if (type == nullptr) return "";
  const std::string name(to_string(type->dtype)), text = "every value is a " + name + " number";
  const StepsOff off = steps_off(sample, *type);
  if (off.rms <= kOneRounding) return text + ": the right one, rounded to that type";
  if (off.rms < kSummed || off.rms > kMostSteps || std::fabs(off.away) > kToNoSide * off.rms)
    return text;
  std::array<char, 16> steps{};
  std::snprintf(steps.data(), steps.size(), "%.2g", off.rms);
  return text + ", " + steps.data() + " of its steps off on average: as sums made in " + name +
         " are";
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
  return joined({text, coarse_numbers(c, sample)});
}

}  // namespace dsv32::harness
