#include <cmath>
#include <optional>

#include "src/io/cases.h"
#include "src/io/checkpoint.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

/// What one pass over the values saw.
struct Tally {
  int64_t tensors = 0, values = 0;
  std::vector<std::string> not_finite, different;
};

std::string element(const std::string& name, int64_t i, double value) {
  return name + " element " + std::to_string(i) + " = " + std::to_string(value);
}

std::optional<int64_t> first_not_finite(const HostTensor& tensor) {
  for (int64_t i = 0; i < tensor.numel(); ++i)
    if (!std::isfinite(tensor.at(i))) return i;
  return std::nullopt;
}

/// Compares values: every synthetic value is finite, and -0 does not occur.
std::optional<int64_t> first_difference(const HostTensor& stored, const HostTensor& synthetic) {
  for (int64_t i = 0; i < stored.numel(); ++i)
    if (stored.at(i) != synthetic.at(i)) return i;
  return std::nullopt;
}

void check_tensor(const WeightSpec& spec, const WeightSource& source, const WeightSource* synthetic,
                  Tally& tally) {
  const HostTensor stored = source.load(spec);
  ++tally.tensors;
  tally.values += stored.numel();
  if (const auto i = first_not_finite(stored))
    tally.not_finite.push_back(element(spec.name, *i, stored.at(*i)));
  if (!synthetic) return;
  const HostTensor wanted = synthetic->load(spec);
  if (stored.identical(wanted)) return;
  if (const auto i = first_difference(stored, wanted))
    tally.different.push_back(element(spec.name, *i, stored.at(*i)) + " instead of " +
                              std::to_string(wanted.at(*i)));
}

std::string report_text(const Tally& tally, const std::optional<Case>& c) {
  std::string out = std::to_string(tally.tensors) + " tensors, " + std::to_string(tally.values) +
                    " values: names, shapes and dtypes are right\n";
  out += tally.not_finite.empty() ? "every value is finite\n"
                                  : "not finite: " + listed(tally.not_finite) + "\n";
  if (!c) return out + "no " + kCaseFile + ": not compared with synthetic weights\n";
  const std::string weights =
      "synthetic weights of case " + printable(c->name) + ", seed " + std::to_string(c->seed);
  return out + (tally.different.empty()
                    ? "equal to the " + weights + "\n"
                    : "different from the " + weights + ": " + listed(tally.different) + "\n");
}

}  // namespace

CheckpointReport check_checkpoint(const fs::path& dir) {
  const ModelConfig config = read_config((dir / "config.json").string());
  const std::optional<Case> c = case_of_checkpoint(dir);
  const auto source = open_checkpoint(dir, config);
  std::optional<SyntheticWeights> synthetic;
  if (c) synthetic.emplace(*c);
  Tally tally;
  for (const WeightSpec& spec : weight_specs(config))
    check_tensor(spec, *source, synthetic ? &*synthetic : nullptr, tally);
  return {.good = tally.not_finite.empty() && tally.different.empty(),
          .text = report_text(tally, c)};
}

}  // namespace dsv32::io
