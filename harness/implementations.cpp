#include "harness/implementations.h"

#include "src/model/errors.h"
#include "src/optimized/model/model.h"
#include "src/reference/reference.h"

namespace dsv32::harness {
namespace {

constexpr const char* kReference = "reference";
constexpr const char* kOptimized = "optimized";
constexpr const char* kSimt = "optimized-simt";

}  // namespace

const std::vector<std::string>& implementation_names() {
  static const std::vector<std::string> names = {kReference, kOptimized, kSimt};
  return names;
}

std::unique_ptr<Implementation> make_model(const std::string& name, const ModelConfig& config,
                                           const WeightSource& weights) {
  if (name == kReference) return reference::make_reference(config, weights);
  if (name == kOptimized) return optimized::make_optimized(config, weights);
  if (name == kSimt)
    return optimized::make_optimized(config, weights, {.kernels = optimized::Kernels::simt});
  throw Error(ExitCode::internal, {.where = "implementation",
                                   .what = "name",
                                   .expected = "one of implementation_names()",
                                   .got = name});
}

bool rounds_every_op(const std::string& name) { return name != kReference; }

std::vector<std::string> unheld_taps(const std::string& name) {
  if (name == kReference) return {};
  return {"attn.logits", "attn.probs"};
}

}  // namespace dsv32::harness
