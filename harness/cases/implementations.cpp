#include "harness/cases/implementations.h"

#include "src/model/errors.h"
#include "src/optimized/model/model.h"
#include "src/optimized/optimized.h"
#include "src/reference/reference.h"

namespace dsv32::harness {
namespace {

constexpr const char* kReference = "reference";
constexpr const char* kOptimized = "optimized";
constexpr const char* kSimt = "optimized-simt";

[[noreturn]] void refuse(const std::string& name) {
  throw Error(ExitCode::internal, {.where = "implementation",
                                   .what = "name",
                                   .expected = "one of implementation_names()",
                                   .got = name});
}

}  // namespace

const std::vector<std::string>& implementation_names() {
  static const std::vector<std::string> names = {kReference, kOptimized, kSimt};
  return names;
}

Party party_of(const std::string& name) {
  if (name == kReference) return Party::reference;
  if (name == kOptimized || name == kSimt) return Party::optimized;
  refuse(name);
}

Subject implementation_subject(const std::string& name, const std::string& note) {
  return {.party = party_of(name), .label = name + note};
}

std::unique_ptr<Implementation> make_model(const std::string& name, const ModelConfig& config,
                                           const WeightSource& weights) {
  if (name == kReference) return reference::make_reference(config, weights);
  if (name == kOptimized) return optimized::make_optimized(config, weights);
  if (name == kSimt)
    return optimized::make_optimized(config, weights, {.kernels = optimized::Kernels::simt});
  refuse(name);
}

std::string cannot_run(const std::string& name, const ModelConfig& config, DType dtype,
                       const std::string& device) {
  if (name == kReference) return "";
  if (dtype != DType::float32 && dtype != DType::bfloat16 && dtype != DType::fp8)
    return std::string(to_string(dtype)) + ": expected float32, bfloat16 or fp8";
  if (device != "cpu" && name == kSimt) return device + ": the executor runs on the CPU";
  if (device != "cpu" && !optimized::has_device_kernels())
    return device + ": this build has no CUDA kernels";
  return optimized::unsupported(config);
}

std::map<std::string, std::string> unpromised_bits(const std::vector<std::string>& names) {
  std::map<std::string, std::string> bits;
  for (const std::string& name : names) {
    if (name == kReference) continue;
    for (const optimized::UnpromisedBits& entry : optimized::unpromised_bits())
      bits[entry.op] = entry.when;
  }
  return bits;
}

bool runs_in_executor(const std::string& name) { return name == kSimt; }

bool rounds_every_op(const std::string& name) { return name != kReference; }

std::vector<std::string> unheld_taps(const std::string& name) {
  if (name == kReference) return {};
  return {"attn.logits", "attn.probs"};
}

}  // namespace dsv32::harness
