#include "src/training/trainables.h"

#include "src/bridge/bridge.h"

namespace dsv32::training {

FullWeights::FullWeights(const ModelConfig& config, const WeightSource& start,
                         torch::ScalarType master, DType model)
    : start_(start), master_(master), model_(model) {
  for (const WeightSpec& spec : weight_specs(config)) {
    if (is_buffer(spec.name)) continue;
    const HostTensor memory = to_host(to_torch(start.load(spec)), dtype_of(master));
    memory_[spec.name] = memory;
    table_.put(spec.name, to_torch(memory));
  }
}

TensorTable FullWeights::gradients(const Trace& run) const {
  TensorTable gradients;
  for (const std::string& name : table_.names()) {
    const HostTensor* gradient = run.find("grad." + name);
    if (gradient != nullptr) gradients.put(name, to_torch(*gradient).to(master_));
  }
  return gradients;
}

HostTensor FullWeights::load(const WeightSpec& spec) const {
  const auto master = memory_.find(spec.name);
  if (master == memory_.end()) return start_.load(spec);
  return is_narrow(model_) ? to_host(to_torch(master->second), model_) : master->second;
}

std::string FullWeights::identity() const { return start_.identity(); }

}  // namespace dsv32::training
