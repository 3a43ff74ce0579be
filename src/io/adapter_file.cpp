#include <cmath>

#include "src/io/adapter.h"
#include "src/io/file.h"
#include "src/io/output.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

constexpr uint64_t kMaxConfigBytes = 1 << 20;
constexpr const char* kPrefix = "base_model.model.";

bool has_module(const std::vector<LoraModule>& modules, const std::string& name) {
  for (const LoraModule& module : modules)
    if (module.name == name) return true;
  return false;
}

/// Where peft puts an adapter. A fused tensor's one belongs to the wrapper around `experts`; where
/// both tensors are adapted, gate_up_proj has the inner wrapper.
std::string peft_path(const LoraModule& module, const std::vector<LoraModule>& modules) {
  if (!module.is_fused()) return kPrefix + module.name;
  const std::string experts = module.name.substr(0, module.name.rfind('.'));
  const bool inner =
      module.name.ends_with("gate_up_proj") && has_module(modules, experts + ".down_proj");
  return kPrefix + experts + (inner ? ".base_layer" : "");
}

struct Side {
  const LoraModule* module;
  std::string own_name;  // docs/formats.md 1
  Shape shape;
};

/// Name in the file -> what must be there.
std::map<std::string, Side> expected_tensors(const std::vector<LoraModule>& modules) {
  std::map<std::string, Side> out;
  for (const LoraModule& module : modules) {
    const std::string path = peft_path(module, modules);
    out[path + ".lora_A.weight"] = {&module, module.a_name(), module.a_shape()};
    out[path + ".lora_B.weight"] = {&module, module.b_name(), module.b_shape()};
  }
  return out;
}

class TensorChecks {
 public:
  TensorChecks(const SafetensorsFile& file, const std::map<std::string, Side>& expected)
      : file_(file), expected_(expected) {}

  void run() const {
    check_names();
    for (const auto& [name, side] : expected_) {
      const TensorEntry& entry = file_.tensors().at(name);
      check_dtype(name, entry);
      check_shape(name, entry.shape, side);
    }
  }

 private:
  [[noreturn]] void wrong(const std::string& what, const std::string& expected,
                          const std::string& got, const std::string& hint = "") const {
    refuse({.where = file_.path().string(),
            .what = what,
            .expected = expected,
            .got = got,
            .hint = hint});
  }

  void check_names() const {
    std::vector<std::string> unknown, missing;
    for (const auto& [name, entry] : file_.tensors())
      if (expected_.count(name) == 0) unknown.push_back(printable(name));
    for (const auto& [name, side] : expected_)
      if (file_.tensors().count(name) == 0) missing.push_back(name);
    if (!unknown.empty())
      wrong("tensors", "A and B of the modules that adapter_config.json targets",
            "tensors of unknown or untargeted modules " + listed(unknown));
    if (!missing.empty())
      wrong("tensors", "a pair lora_A, lora_B of every target", "missing " + listed(missing));
  }

  void check_dtype(const std::string& name, const TensorEntry& entry) const {
    if (entry.readable && is_floating(entry.dtype)) return;
    wrong(name, "F64, F32, BF16 or F16", std::string(entry.stored));
  }

  void check_shape(const std::string& name, const Shape& shape, const Side& side) const {
    if (shape == side.shape) return;
    const LoraModule& m = *side.module;
    const bool is_a = side.own_name == m.a_name();
    if (shape.size() == 2 && shape[is_a ? 1 : 0] == side.shape[is_a ? 1 : 0] &&
        shape[is_a ? 0 : 1] % m.experts == 0)
      wrong(name, "rank " + std::to_string(m.rank) + " of adapter_config.json",
            "rank " + std::to_string(shape[is_a ? 0 : 1] / m.experts));
    wrong(name, to_string(side.shape), to_string(shape),
          shape == Shape{side.shape[1], side.shape[0]} ? "it is transposed" : "");
  }

  const SafetensorsFile& file_;
  const std::map<std::string, Side>& expected_;
};

void check_demand(const std::vector<LoraModule>& modules, const AdapterDemand& demand,
                  const std::string& where) {
  for (const LoraModule& module : modules) {
    if (demand.rank && module.rank != *demand.rank)
      refuse({.where = where,
              .what = "rank of " + module.name,
              .expected = std::to_string(*demand.rank),
              .got = std::to_string(module.rank)});
    if (demand.scale && module.scale() != *demand.scale)
      refuse({.where = where,
              .what = "scale alpha / r of " + module.name,
              .expected = canonical_json(Json(*demand.scale)),
              .got = canonical_json(Json(module.scale())),
              .context = "lora_alpha " + canonical_json(Json(module.alpha)) + ", r " +
                         std::to_string(module.rank)});
  }
}

HostTensor read_finite(const SafetensorsFile& file, const std::string& name) {
  HostTensor stored = file.read(name);
  for (int64_t i = 0; i < stored.numel(); ++i)
    if (!std::isfinite(stored.at(i)))
      refuse({.where = file.path().string(),
              .what = name,
              .expected = "finite values",
              .got = std::to_string(stored.at(i)) + " at element " + std::to_string(i)});
  return stored.dtype() == DType::float64 ? stored : stored.cast(DType::float32);
}

}  // namespace

Adapter read_adapter(const fs::path& dir, const ModelConfig& config, const AdapterDemand& demand) {
  const fs::path config_path = dir / kAdapterConfig;
  AdapterConfig parsed =
      parse_adapter_config(read_file(config_path, kMaxConfigBytes), config, config_path.string());
  check_demand(parsed.modules, demand, config_path.string());
  const SafetensorsFile file(dir / kAdapterTensors);
  const std::map<std::string, Side> expected = expected_tensors(parsed.modules);
  TensorChecks(file, expected).run();
  Adapter adapter;
  for (const auto& [name, side] : expected)
    adapter.tensors[side.own_name] = read_finite(file, name);
  adapter.modules = std::move(parsed.modules);
  adapter.warnings = std::move(parsed.warnings);
  return adapter;
}

void write_adapter(const fs::path& dir, const ModelConfig& config, const Adapter& adapter) {
  if (adapter.modules.empty())
    throw Error(ExitCode::internal, {.where = dir.string(),
                                     .what = "adapter",
                                     .expected = "one module or more",
                                     .got = "none"});
  make_directory(dir);
  const std::map<std::string, Side> expected = expected_tensors(adapter.modules);
  std::vector<std::pair<std::string, TensorEntry>> specs;
  for (const auto& [name, side] : expected)
    specs.push_back(
        {name, {.dtype = adapter.tensors.at(side.own_name).dtype(), .shape = side.shape}});
  OutputSet files;
  SafetensorsWriter writer(files.add(dir / kAdapterTensors), {{"format", "pt"}}, specs);
  for (const auto& [name, side] : expected) writer.append(adapter.tensors.at(side.own_name));
  writer.finish();
  files.put(dir / kAdapterConfig, adapter_config_text(config, adapter.modules));
  files.commit();
}

}  // namespace dsv32::io
