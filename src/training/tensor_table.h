#pragma once

#include <map>
#include <string>
#include <vector>

#include "src/bridge/libtorch.h"

namespace dsv32::training {

using torch::Tensor;

/// L2 norm, in double.
double norm_of(const Tensor& value);
/// L2 norm of a - b, in double.
double distance(const Tensor& a, const Tensor& b);

/// Named tensors in a fixed order: parameters, gradients, optimizer moments.
class TensorTable {
 public:
  /// Replaces a tensor of the same name.
  void put(const std::string& name, Tensor value);
  /// Finds a tensor; throws Error (internal) for an unknown name.
  const Tensor& at(const std::string& name) const;
  bool has(const std::string& name) const { return values_.count(name) != 0; }
  const std::vector<std::string>& names() const { return names_; }
  bool empty() const { return names_.empty(); }
  /// Copies every tensor.
  TensorTable clone() const;
  /// Overwrites every tensor in place by the one of the same name, converted to this table's types.
  /// Throws Error (artefact) where names or shapes differ.
  void assign(const TensorTable& values);

 private:
  std::vector<std::string> names_;
  std::map<std::string, Tensor> values_;
};

}  // namespace dsv32::training
