// For suites/training/peft_test.py: writes adapters that real peft is to load, and gives the
// reference's logits with adapters that peft wrote.
//
//   adapter_tool make CASE DIR attention|mlp|kl|experts...
//   adapter_tool logits CASE OUT [DIR...]

#include <algorithm>
#include <cstdio>
#include <exception>

#include "src/io/io.h"
#include "src/model/batch.h"
#include "src/model/errors.h"
#include "src/model/implementation.h"
#include "src/reference/reference.h"
#include "src/training/lora.h"

namespace dsv32 {
namespace {

using Words = std::vector<std::string>;

std::string kind_of(const LoraModule& module) {
  if (module.is_fused()) return "experts";
  if (module.is_kl()) return "kl";
  return module.name.find(".self_attn.") == std::string::npos ? "mlp" : "attention";
}

/// A and B of docs/formats.md 1, B other than zero.
void make(const Case& c, const std::string& dir, const Words& kinds) {
  io::Adapter adapter;
  const SyntheticWeights synthetic(c.seed);
  for (const LoraModule& module : lora_modules(c.config, {.experts = true})) {
    if (std::find(kinds.begin(), kinds.end(), kind_of(module)) == kinds.end()) continue;
    adapter.tensors[module.a_name()] = synthetic.load({module.a_name(), module.a_shape()});
    adapter.tensors[module.b_name()] = synthetic.load({module.b_name(), module.b_shape()});
    adapter.modules.push_back(module);
  }
  io::write_adapter(dir, c.config, adapter);
}

/// What an adapter's file holds, by the names of docs/formats.md 1.
class FileWeights : public WeightSource {
 public:
  explicit FileWeights(const io::Adapter& adapter) : adapter_(adapter) {}
  HostTensor load(const WeightSpec& spec) const override { return adapter_.tensors.at(spec.name); }
  std::string identity() const override { return "adapter"; }

 private:
  const io::Adapter& adapter_;
};

/// Several adapters, each on the weights of the one before.
void logits(const Case& c, const std::string& out, const Words& dirs) {
  const SyntheticWeights base(c);
  std::vector<std::unique_ptr<training::LoraAdapters>> stack;
  const WeightSource* weights = &base;
  for (const std::string& dir : dirs) {
    const io::Adapter adapter = io::read_adapter(dir, c.config);
    for (const std::string& warning : adapter.warnings)
      std::fprintf(stderr, "%s\n", warning.c_str());
    stack.push_back(std::make_unique<training::LoraAdapters>(
        c.config, adapter.modules, *weights, FileWeights(adapter), torch::kFloat32));
    weights = stack.back().get();
  }
  const auto model = reference::make_reference(c.config, *weights);
  const HostTensor value = *model->run(make_batch(c), {}).find("logits");
  const io::TensorEntry entry{.dtype = value.dtype(), .shape = value.shape()};
  io::SafetensorsWriter writer(out, {}, {{"logits", entry}});
  writer.append(value);
  writer.finish();
}

int run(const Words& words) {
  if (words.size() < 3 || (words[0] != "make" && words[0] != "logits")) {
    std::fprintf(stderr, "adapter_tool make|logits CASE PATH ...\n");
    return static_cast<int>(ExitCode::usage);
  }
  const Case& c = io::find_case(words[1]);
  const Words rest(words.begin() + 3, words.end());
  words[0] == "make" ? make(c, words[2], rest) : logits(c, words[2], rest);
  return 0;
}

}  // namespace
}  // namespace dsv32

int main(int argc, char** argv) {
  try {
    return dsv32::run(dsv32::Words(argv + 1, argv + argc));
  } catch (const dsv32::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
}
