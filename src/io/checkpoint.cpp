#include "src/io/checkpoint.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <set>
#include <unordered_map>

#include "src/io/cases.h"
#include "src/io/sha256.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

/// Where one tensor of the unfused layout lies.
struct Source {
  const SafetensorsFile* file;
  std::string stored_name;
  int64_t first = 0;  // element of the stored tensor
};

/// What is wrong with a checkpoint, all of it.
struct Findings {
  std::vector<std::string> missing, unexpected, misshapen, wrong_type, quantized, demo;
};

/// A stored tensor that may be asked for: its file, and whether something took it.
struct Stored {
  const SafetensorsFile* file;
  const TensorEntry* entry;
  bool used = false;
};

bool is_quantized(const std::string& name, const TensorEntry& entry) {
  return entry.stored.starts_with("F8_") || name.ends_with("_scale_inv") ||
         name.ends_with(".scale");
}

/// Names of the inference demo's own checkpoints.
bool is_demo(const std::string& name) {
  return name.starts_with("layers.") || name == "embed.weight" || name == "head.weight" ||
         name == "norm.weight";
}

/// "model.layers.3.mlp.experts.5.gate_proj.weight" in its three parts.
struct ExpertName {
  std::string experts;  // "model.layers.3.mlp.experts."
  int64_t expert;
  std::string part;  // "gate_proj"
};

std::optional<ExpertName> parse_expert(const std::string& name) {
  constexpr std::string_view kExperts = ".mlp.experts.", kWeight = ".weight";
  const size_t at = name.find(kExperts);
  if (at == std::string::npos || !name.ends_with(kWeight)) return std::nullopt;
  const size_t number = at + kExperts.size(), dot = name.find('.', number);
  return ExpertName{name.substr(0, number), std::stoll(name.substr(number, dot - number)),
                    name.substr(dot + 1, name.size() - kWeight.size() - dot - 1)};
}

/// Matches the tensors of the model with those of the files.
class Matcher {
 public:
  Matcher(const std::vector<SafetensorsFile>& files, const ModelConfig& config) : config_(config) {
    const std::string ignored = "model.layers." + std::to_string(config.num_hidden_layers) + ".";
    for (const SafetensorsFile& file : files)
      for (const auto& [name, entry] : file.tensors())
        if (!name.starts_with(ignored))
          stored_.emplace(name, Stored{&file, &entry});  // docs/spec.md 1.11: the MTP layer
  }

  /// `needed`: names that must be there; empty: every one of the model.
  std::unordered_map<std::string, Source> match(const std::set<std::string>& needed) {
    for (const WeightSpec& spec : weight_specs(config_))
      match_one(spec, needed.empty() || needed.contains(spec.name));
    for (const auto& [name, stored] : stored_) {
      if (is_quantized(name, *stored.entry)) {
        findings_.quantized.push_back(name);
      } else if (!stored.used) {
        (is_demo(name) ? findings_.demo : findings_.unexpected).push_back(name);
      }
    }
    return std::move(sources_);
  }
  const Findings& findings() const { return findings_; }

 private:
  void match_one(const WeightSpec& spec, bool needed) {
    if (take(spec.name, spec.shape)) {
      sources_.emplace(spec.name, Source{stored_.at(spec.name).file, spec.name});
    } else if (const auto expert = parse_expert(spec.name);
               (!expert || !match_fused(spec, *expert)) && needed) {
      findings_.missing.push_back(spec.name);
    }
  }

  /// gate_up_proj [E,2I,hidden], gate first; down_proj [E,hidden,I].
  bool match_fused(const WeightSpec& spec, const ExpertName& name) {
    const bool down = name.part == "down_proj";
    const std::string fused = name.experts + (down ? "down_proj" : "gate_up_proj");
    const int64_t E = config_.n_routed_experts, I = config_.moe_intermediate_size,
                  hidden = config_.hidden_size;
    if (!take(fused, down ? Shape{E, hidden, I} : Shape{E, 2 * I, hidden})) return false;
    const int64_t per_expert = (down ? 1 : 2) * I * hidden;
    const int64_t offset = name.part == "up_proj" ? I * hidden : 0;
    sources_.emplace(spec.name,
                     Source{stored_.at(fused).file, fused, name.expert * per_expert + offset});
    return true;
  }

  /// Is the tensor there? A wrong shape or dtype is noted once and counts as there.
  bool take(const std::string& name, const Shape& shape) {
    const auto it = stored_.find(name);
    if (it == stored_.end()) return false;
    Stored& stored = it->second;
    const TensorEntry& entry = *stored.entry;
    if (!stored.used && entry.shape != shape)
      findings_.misshapen.push_back(name + " " + to_string(entry.shape) + " instead of " +
                                    to_string(shape));
    const bool readable = entry.readable && is_floating(entry.dtype);
    if (!stored.used && !readable && !is_quantized(name, entry))
      findings_.wrong_type.push_back(name + " " + std::string(entry.stored));
    stored.used = true;
    return true;
  }

  const ModelConfig& config_;
  std::map<std::string, Stored> stored_;
  std::unordered_map<std::string, Source> sources_;
  Findings findings_;
};

/// All complaints in one text; an empty text: none.
std::string complaints(const Findings& f) {
  std::string out;
  const auto add = [&out](const char* title, const std::vector<std::string>& names) {
    if (!names.empty()) out += (out.empty() ? "" : "; ") + std::string(title) + " " + listed(names);
  };
  add("FP8 tensors", f.quantized);
  add("tensors under the inference demo's names", f.demo);
  add("missing", f.missing);
  add("unexpected", f.unexpected);
  add("wrong shape", f.misshapen);
  add("wrong dtype", f.wrong_type);
  return out;
}

/// Layers of which every tensor is there: "0 3 60"; "" when that is all of them or none.
std::string whole_layers(const std::unordered_map<std::string, Source>& sources,
                         const ModelConfig& config) {
  std::string list;
  int64_t whole = 0;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::vector<WeightSpec> specs = layer_weight_specs(config, layer);
    if (!std::all_of(specs.begin(), specs.end(),
                     [&](const WeightSpec& spec) { return sources.contains(spec.name); }))
      continue;
    ++whole;
    list += (list.empty() ? "" : ",") + std::to_string(layer);
  }
  return whole == config.num_hidden_layers ? "" : list;
}

std::string hint(const Findings& f, const std::string& layers) {
  if (!layers.empty() && f.quantized.empty() && f.demo.empty())
    return "of its layers it has these whole: " + layers + " (--layers " + layers + ")";
  if (!f.quantized.empty())
    return "FP8 checkpoints are read from a later version on: convert to bfloat16";
  if (!f.demo.empty())
    return "convert to the Hugging Face names (model.layers.N.self_attn.q_a_proj.weight, ...)";
  return "is this the checkpoint of that config?";
}

void require_clean(const Findings& findings, const fs::path& dir, const ModelConfig& config,
                   const std::string& layers) {
  const std::string got = complaints(findings);
  if (got.empty()) return;
  refuse({.where = dir.string(),
          .what = "tensors",
          .expected =
              "names and shapes of config " + printable(config.name) + ", in F64, F32, BF16 or F16",
          .got = got,
          .hint = hint(findings, layers)});
}

class Checkpoint : public WeightSource {
 public:
  Checkpoint(const fs::path& dir, const ModelConfig& config, const std::vector<WeightSpec>& needed)
      : files_(open_checkpoint_files(dir)),
        dir_(dir),
        specs_(needed.empty() ? weight_specs(config) : needed) {
    std::set<std::string> names;
    for (const WeightSpec& spec : needed) names.insert(spec.name);
    Matcher matcher(files_, config);
    sources_ = matcher.match(names);
    require_clean(matcher.findings(), dir, config, whole_layers(sources_, config));
    const auto c = case_of_checkpoint(dir);
    if (c) synthetic_ = SyntheticWeights(*c);
  }

  HostTensor load(const WeightSpec& spec) const override { return read(spec.name, 0, spec.shape); }

  HostTensor load_rows(const WeightSpec& spec, int64_t begin, int64_t end) const override {
    const Shape shape = shape_of_rows(spec, begin, end);
    return read(spec.name, begin * row_size(spec), shape);
  }

  std::string identity() const override {
    std::call_once(identified_, [this] {
      identity_ = starts_synthetic() ? synthetic_.identity() : "sha256:" + digest();
    });
    return identity_;
  }

 private:
  /// `shape` elements of a tensor from element `first` on.
  HostTensor read(const std::string& name, int64_t first, const Shape& shape) const {
    const auto it = sources_.find(name);
    if (it == sources_.end())
      refuse({.where = dir_.string(),
              .what = "tensor",
              .expected = name,
              .got = "no tensor of that name"});
    const Source& source = it->second;
    const HostTensor stored =
        source.file->read_range(source.stored_name, source.first + first, shape);
    const bool wide = stored.dtype() == DType::float64 || stored.dtype() == DType::float32;
    return wide ? stored : stored.cast(DType::float32);
  }

  /// Looks at the first row of every tensor: a synthetic value depends on its index and the width
  /// of a row only.
  bool starts_synthetic() const {
    return std::all_of(specs_.begin(), specs_.end(), [&](const WeightSpec& spec) {
      const int64_t rows = spec.shape.size() > 1 ? 1 : spec.shape[0];
      return load_rows(spec, 0, rows)
          .cast(DType::float32)
          .identical(synthetic_.load_rows(spec, 0, rows));
    });
  }

  std::string digest() const {
    std::map<std::string, const WeightSpec*> sorted;
    for (const WeightSpec& spec : specs_) sorted.emplace(spec.name, &spec);
    Sha256 model;
    for (const auto& [name, spec] : sorted) {
      const HostTensor values = load(*spec).cast(DType::float32);
      Sha256 tensor;
      tensor.update(values.raw(), static_cast<size_t>(values.bytes()));
      const auto bytes = tensor.bytes();
      model.update(name.data(), name.size());
      model.update(bytes.data(), bytes.size());
    }
    return model.hex();
  }

  std::vector<SafetensorsFile> files_;
  fs::path dir_;
  std::vector<WeightSpec> specs_;
  std::unordered_map<std::string, Source> sources_;
  SyntheticWeights synthetic_{1};  // of its case
  mutable std::once_flag identified_;
  mutable std::string identity_;
};

}  // namespace

std::unique_ptr<WeightSource> open_checkpoint(const fs::path& dir, const ModelConfig& config,
                                              const std::vector<WeightSpec>& needed) {
  return std::make_unique<Checkpoint>(dir, config, needed);
}

}  // namespace dsv32::io
