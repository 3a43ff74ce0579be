#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "src/bridge/libtorch.h"
#include "src/model/weights.h"

namespace dsv32::reference {

/// A weight as the layers use it: its values, and in fp8 mode what they are the product of.
struct Weight {
  Weight(torch::Tensor values) : value(std::move(values)) {}  // NOLINT(google-explicit-constructor)
  operator const torch::Tensor&() const { return value; }     // NOLINT(google-explicit-constructor)

  torch::Tensor value;
  torch::Tensor codes;   // [out,in] values of e4m3 codes; undefined outside of fp8 mode
  torch::Tensor scales;  // [ceil(out/block_rows),ceil(in/block_columns)]
  int64_t block_rows = 0, block_columns = 0;
};

/// How a run wants its weights.
struct WeightStyle {
  torch::ScalarType type = torch::kFloat32;
  torch::Device device = torch::kCPU;
  bool requires_grad = false;  // leaves that keep their gradient until `gradients` is called
  double perturbation = 0;     // relative, random signs: a condition probe
  uint64_t perturbation_seed = 0;
  /// Of a segment's run, which sees a full-size layer: large matrices of a float64 run stay float32
  /// (every product widens a part of them) and are not kept; signs of a perturbation come from a
  /// counter.
  bool streamed = false;
  /// Weights that are kept in FP8 are rounded to bfloat16 once they are dequantised.
  bool fp8_as_bfloat16 = false;
  bool fp8_codes = false;  // codes and scales beside the values
};

/// The weights of one layer (or of the embedding or the head), loaded when first asked for. Without
/// gradients an expert's tensors are not kept: only one expert need fit in memory.
class LayerWeights {
 public:
  /// `prefix` is "model.layers.N." for a layer, "" for the rest; `specs` its tensors.
  LayerWeights(const WeightSource& source, std::vector<WeightSpec> specs, std::string prefix,
               WeightStyle style);

  /// "self_attn.q_a_proj.weight"; throws Error (internal) for a name outside the specs.
  Weight get(const std::string& name);
  /// Rows `ids` of a tensor, read one by one and not kept.
  torch::Tensor get_rows(const std::string& name, const std::vector<int64_t>& ids) const;
  /// Rows [begin, end) of a tensor, not kept.
  torch::Tensor get_range(const std::string& name, int64_t begin, int64_t end) const;
  const std::vector<WeightSpec>& specs() const { return specs_; }
  const std::string& prefix() const { return prefix_; }
  /// Gradient of a tensor by full name; undefined if it was never used or got none.
  torch::Tensor gradient(const std::string& full_name) const;
  /// Drops a tensor and its gradient, by full name.
  void release(const std::string& full_name) { kept_.erase(full_name); }

 private:
  const WeightSpec& spec_of(const std::string& full_name) const;
  Weight loaded(const WeightSpec& spec) const;
  torch::Tensor prepared(const HostTensor& stored, const WeightSpec& spec,
                         const std::string& place) const;

  const WeightSource& source_;
  std::vector<WeightSpec> specs_;
  std::string prefix_;
  WeightStyle style_;
  std::map<std::string, const WeightSpec*> by_name_;
  std::map<std::string, Weight> kept_;
};

}  // namespace dsv32::reference
