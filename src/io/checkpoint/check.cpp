#include <array>
#include <cmath>
#include <optional>

#include "src/io/cases.h"
#include "src/io/checkpoint/match.h"
#include "src/io/checkpoint/names.h"
#include "src/io/sha256.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

using Progress = std::function<void(const std::string&)>;

/// What one pass over the values saw.
struct Tally {
  std::vector<std::string> not_finite, different, unlike_replicas;
  std::map<std::string, std::array<uint8_t, 32>> digests;  // of the float32 values, by name
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

void take_digest(const std::string& name, const HostTensor& stored, Tally& tally) {
  const HostTensor values = stored.cast(DType::float32);
  Sha256 digest;
  digest.update(values.raw(), static_cast<size_t>(values.bytes()));
  tally.digests.emplace(name, digest.bytes());
}

void check_tensor(const WeightSpec& spec, const WeightSource& source, const WeightSource* synthetic,
                  Tally& tally) {
  const HostTensor stored = source.load(spec);
  take_digest(spec.name, stored, tally);
  if (const auto i = first_not_finite(stored))
    tally.not_finite.push_back(element(spec.name, *i, stored.at(*i)));
  if (!synthetic) return;
  const HostTensor wanted = synthetic->load(spec);
  if (stored.identical(wanted)) return;
  if (const auto i = first_difference(stored, wanted))
    tally.different.push_back(element(spec.name, *i, stored.at(*i)) + " instead of " +
                              std::to_string(wanted.at(*i)));
}

HostTensor raw_tensor(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry& entry = file.tensors().at(name);
  return entry.readable ? file.read(name) : file.read_bytes(name, 0, entry.shape);
}

/// What every rank of the demo holds must be the same in all of them.
void check_replicas(const CheckpointFiles& files, Tally& tally) {
  if (files.ranks <= 1) return;
  const SafetensorsFile& first = files.files.front();
  for (const auto& [name, entry] : first.tensors()) {
    const std::string released = released_name(name).value_or(name);
    const std::string weight = released.substr(0, released.rfind(kScaleSuffix));
    if (rank_split(weight) != RankSplit::none) continue;
    for (size_t rank = 1; rank < files.files.size(); ++rank)
      if (!raw_tensor(files.files[rank], name).identical(raw_tensor(first, name)))
        tally.unlike_replicas.push_back(name + " of rank " + std::to_string(rank));
  }
}

std::string model_digest(const Tally& tally) {
  Sha256 model;
  for (const auto& [name, digest] : tally.digests) {
    model.update(name.data(), name.size());
    model.update(digest.data(), digest.size());
  }
  return model.hex();
}

/// "33 BF16, 12 F8_E4M3": how many stored tensors there are of each type.
std::string stored_types(const CheckpointFiles& files) {
  std::map<std::string_view, int64_t> counts;
  for (const SafetensorsFile& file : files.files)
    for (const auto& [name, entry] : file.tensors()) ++counts[entry.stored];
  std::string text;
  for (const auto& [type, count] : counts)
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " " + std::string(type);
  return text;
}

std::string summary(const CheckpointFiles& files, const ModelConfig& config,
                    const WeightSource& source) {
  int64_t values = 0;
  const std::vector<WeightSpec> specs = weight_specs(config);
  for (const WeightSpec& spec : specs) values += numel(spec.shape);
  std::string out = std::to_string(specs.size()) + " tensors, " + std::to_string(values) +
                    " values: names, shapes and dtypes are right\n" + "stored in " +
                    std::to_string(files.files.size()) +
                    (files.files.size() == 1 ? " file: " : " files: ") + stored_types(files) + "\n";
  for (const std::string& note : source.notes()) out += note + "\n";
  return out;
}

std::string report_text(const Tally& tally, const std::optional<Case>& c) {
  std::string out = tally.not_finite.empty() ? "every value is finite\n"
                                             : "not finite: " + listed(tally.not_finite) + "\n";
  if (!tally.unlike_replicas.empty())
    out += "not the same as in rank 0: " + listed(tally.unlike_replicas) + "\n";
  out += "sha256 of the model " + model_digest(tally) + "\n";
  if (!c) return out + "no " + kCaseFile + ": not compared with synthetic weights\n";
  const std::string weights =
      "synthetic weights of case " + printable(c->name) + ", seed " + std::to_string(c->seed);
  return out + (tally.different.empty()
                    ? "equal to the " + weights + "\n"
                    : "different from the " + weights + ": " + listed(tally.different) + "\n");
}

}  // namespace

CheckpointReport check_checkpoint(const fs::path& dir, bool full, const Progress& progress) {
  const ModelConfig config = read_config((dir / "config.json").string());
  const std::optional<Case> c = case_of_checkpoint(dir);
  const auto source = open_checkpoint(dir, config);
  const CheckpointFiles files = open_checkpoint_files(dir);
  const std::string head = summary(files, config, *source);
  if (!full) return {.good = true, .text = head + "values were not read: --full does it\n"};
  std::optional<SyntheticWeights> synthetic;
  if (c) synthetic.emplace(*c);
  Tally tally;
  const std::vector<WeightSpec> specs = weight_specs(config);
  source->expect(specs, {});
  for (const WeightSpec& spec : specs) {
    if (progress) progress(spec.name);
    check_tensor(spec, *source, synthetic ? &*synthetic : nullptr, tally);
  }
  check_replicas(files, tally);
  return {
      .good = tally.not_finite.empty() && tally.different.empty() && tally.unlike_replicas.empty(),
      .text = head + report_text(tally, c)};
}

}  // namespace dsv32::io
