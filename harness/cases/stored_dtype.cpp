#include "harness/cases/stored_dtype.h"

#include <cmath>
#include <vector>

namespace dsv32::harness {
namespace {

bool tells(const TapName& tap) {
  const std::string_view name = tap.info.name;
  const bool values = tap.info.kind == TapKind::token || tap.info.kind == TapKind::key;
  return values && name != "embed" && name != "ix.weights" && name != "moe.routed" &&
         name != "logits" && !name.starts_with("router.");
}

double rounded(double value, DType dtype) {
  const auto narrow = static_cast<float>(value);
  switch (dtype) {
    case DType::bfloat16:
      return bfloat16_to_float(float_to_bfloat16(narrow));
    case DType::float16:
      return float16_to_float(float_to_float16(narrow));
    case DType::float32:
      return narrow;
    default:
      return value;
  }
}

/// Every value is one of this type.
bool fits(const HostTensor& tensor, DType dtype) {
  if (tensor.dtype() == dtype) return true;
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    const double value = tensor.at(i);
    if (std::isfinite(value) && rounded(value, dtype) != value) return false;
  }
  return true;
}

bool says_nothing(const HostTensor& tensor) {
  for (int64_t i = 0; i < tensor.numel(); ++i)
    if (std::isfinite(tensor.at(i)) && tensor.at(i) != 0) return false;
  return true;
}

std::vector<const HostTensor*> telling_taps(const Trace& trace) {
  std::vector<const HostTensor*> taps;
  for (const std::string& name : trace.names()) {
    const auto tap = parse_tap(name);
    if (tap && tells(*tap) && !says_nothing(*trace.find(name))) taps.push_back(trace.find(name));
  }
  return taps;
}

size_t count_fitting(const std::vector<const HostTensor*>& taps, DType dtype) {
  size_t count = 0;
  for (const HostTensor* tap : taps) count += fits(*tap, dtype) ? 1 : 0;
  return count;
}

std::vector<DType> narrower_than(DType dtype) {
  if (dtype == DType::float64) return {DType::float32, DType::bfloat16, DType::float16};
  if (dtype == DType::float32) return {DType::bfloat16, DType::float16};
  return {};
}

}  // namespace

std::string dtype_contradiction(const Trace& trace, DType said) {
  const std::vector<const HostTensor*> taps = telling_taps(trace);
  if (taps.empty()) return "";
  const std::string name(to_string(said)), all = std::to_string(taps.size());
  const size_t fitting = count_fitting(taps, said);
  if (2 * fitting < taps.size())
    return "dtype " + name + ": " + std::to_string(taps.size() - fitting) + " of " + all +
           " taps hold values that " + name + " cannot";
  for (const DType narrow : narrower_than(said))
    if (count_fitting(taps, narrow) == taps.size())
      return "dtype " + name + ": all values of all " + all + " taps are exact in " +
             std::string(to_string(narrow));
  return "";
}

}  // namespace dsv32::harness
