#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "src/model/weights.h"

namespace dsv32::optimized {

/// The weights of one layer, or of what is outside the layers, loaded when first asked for and gone
/// with the object.
class Weights {
 public:
  /// `prefix` is "model.layers.N." for a layer, "" for the rest; `specs` its tensors.
  Weights(const WeightSource& source, std::vector<WeightSpec> specs, std::string prefix,
          at::ScalarType type, at::Device device);

  /// Gives a weight in the type of the activations; throws Error (internal) for a name outside the
  /// specs.
  const at::Tensor& get(const std::string& name) { return get(name, type_); }
  /// Gives a weight in float32, for what docs/spec.md 1 computes in it.
  const at::Tensor& exact(const std::string& name) { return get(name, at::kFloat); }
  /// A weight as fp8 mode multiplies it. Throws Error (usage) where it is not kept in FP8.
  struct Codes {
    at::Tensor codes, scales;  // [out,in] uint8, [ceil(out/block_rows),ceil(in/block_columns)]
  };
  const Codes& codes(const std::string& name);
  /// One projection of every routed expert, in ascending expert id.
  std::vector<at::Tensor> experts(const std::string& projection, int64_t count);
  /// The same of some experts, not kept.
  std::vector<at::Tensor> some_experts(const std::string& projection,
                                       const std::vector<int64_t>& ids) const;
  /// Rows `ids` of a tensor, read one by one and not kept.
  at::Tensor get_rows(const std::string& name, const std::vector<int64_t>& ids) const;
  const std::vector<WeightSpec>& specs() const { return specs_; }
  const std::string& prefix() const { return prefix_; }

 private:
  const at::Tensor& get(const std::string& name, at::ScalarType type);
  const WeightSpec& spec_of(const std::string& full_name) const;

  const WeightSource& source_;
  std::vector<WeightSpec> specs_;
  std::string prefix_;
  at::ScalarType type_;
  at::Device device_;
  std::map<std::string, const WeightSpec*> by_name_;
  std::map<std::pair<std::string, at::ScalarType>, at::Tensor> kept_;
  std::map<std::string, Codes> kept_codes_;
};

}  // namespace dsv32::optimized
