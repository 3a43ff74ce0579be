#include "src/optimized/model/weights.h"

#include "src/bridge/bridge.h"
#include "src/model/errors.h"

namespace dsv32::optimized {

Weights::Weights(const WeightSource& source, std::vector<WeightSpec> specs, std::string prefix,
                 at::ScalarType type, at::Device device)
    : source_(source),
      specs_(std::move(specs)),
      prefix_(std::move(prefix)),
      type_(type),
      device_(device) {
  for (const WeightSpec& spec : specs_) by_name_[spec.name] = &spec;
}

const at::Tensor& Weights::get(const std::string& name, at::ScalarType type) {
  const std::string full = prefix_ + name;
  const auto key = std::pair(full, type);
  if (const auto kept = kept_.find(key); kept != kept_.end()) return kept->second;
  const auto spec = by_name_.find(full);
  if (spec == by_name_.end()) {
    throw Error(
        ExitCode::internal,
        {.where = "optimized", .what = "weight", .expected = "a name of this layer", .got = full});
  }
  return kept_[key] = to_torch(source_.load(*spec->second)).to(device_, type);
}

std::vector<at::Tensor> Weights::experts(const std::string& projection, int64_t count) {
  std::vector<at::Tensor> all;
  for (int64_t e = 0; e < count; ++e)
    all.push_back(get("mlp.experts." + std::to_string(e) + "." + projection + ".weight"));
  return all;
}

}  // namespace dsv32::optimized
