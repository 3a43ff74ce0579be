#include "src/optimized/model/weights.h"

#include "src/bridge/bridge.h"
#include "src/model/errors.h"
#include "src/model/segment.h"

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

const WeightSpec& Weights::spec_of(const std::string& full_name) const {
  const auto spec = by_name_.find(full_name);
  if (spec != by_name_.end()) return *spec->second;
  throw Error(ExitCode::internal, {.where = "optimized",
                                   .what = "weight",
                                   .expected = "a name of this layer",
                                   .got = full_name});
}

const at::Tensor& Weights::get(const std::string& name, at::ScalarType type) {
  const std::string full = prefix_ + name;
  const auto key = std::pair(full, type);
  if (const auto kept = kept_.find(key); kept != kept_.end()) return kept->second;
  return kept_[key] = to_torch(source_.load(spec_of(full))).to(device_, type);
}

const Weights::Codes& Weights::codes(const std::string& name) {
  const std::string full = prefix_ + name;
  if (const auto kept = kept_codes_.find(full); kept != kept_codes_.end()) return kept->second;
  const std::optional<Fp8Matrix> matrix = source_.load_fp8(spec_of(full));
  if (!matrix)
    throw Error(ExitCode::usage, {.where = "--dtype fp8",
                                  .what = full,
                                  .expected = "codes and scales",
                                  .got = "a weight that is not kept in FP8"});
  return kept_codes_[full] = {to_torch(matrix->codes).to(device_),
                              to_torch(matrix->scales).to(device_)};
}

at::Tensor Weights::get_rows(const std::string& name, const std::vector<int64_t>& ids) const {
  return to_torch(gather_rows(source_, spec_of(prefix_ + name), ids)).to(device_, type_);
}

std::vector<at::Tensor> Weights::some_experts(const std::string& projection,
                                              const std::vector<int64_t>& ids) const {
  std::vector<at::Tensor> some;
  for (const int64_t e : ids) {
    const WeightSpec& spec =
        spec_of(prefix_ + "mlp.experts." + std::to_string(e) + "." + projection + ".weight");
    some.push_back(to_torch(source_.load(spec)).to(device_, type_));
  }
  return some;
}

std::vector<at::Tensor> Weights::experts(const std::string& projection, int64_t count) {
  std::vector<at::Tensor> all;
  for (int64_t e = 0; e < count; ++e)
    all.push_back(get("mlp.experts." + std::to_string(e) + "." + projection + ".weight"));
  return all;
}

}  // namespace dsv32::optimized
