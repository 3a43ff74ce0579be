#include "src/training/tensor_table.h"

#include "src/model/errors.h"
#include "src/model/tensor.h"

namespace dsv32::training {

double norm_of(const Tensor& value) {
  return torch::linalg_vector_norm(value.to(torch::kFloat64)).item<double>();
}

double distance(const Tensor& a, const Tensor& b) {
  return norm_of(a.to(torch::kFloat64) - b.to(torch::kFloat64));
}

void TensorTable::put(const std::string& name, Tensor value) {
  if (!has(name)) names_.push_back(name);
  values_[name] = std::move(value);
}

const Tensor& TensorTable::at(const std::string& name) const {
  const auto found = values_.find(name);
  if (found != values_.end()) return found->second;
  throw Error(
      ExitCode::internal,
      {.where = "training", .what = "tensor", .expected = "a name of the table", .got = name});
}

TensorTable TensorTable::clone() const {
  TensorTable copy;
  for (const std::string& name : names_) copy.put(name, at(name).clone());
  return copy;
}

void TensorTable::assign(const TensorTable& values) {
  if (values.names() != names_) {
    throw Error(ExitCode::artefact, {.where = "training",
                                     .what = "names of the tensors",
                                     .expected = std::to_string(names_.size()) + " equal ones",
                                     .got = std::to_string(values.names().size()) + " others"});
  }
  torch::NoGradGuard no_grad;
  for (const std::string& name : names_) {
    const Tensor& to = at(name);
    const Tensor& from = values.at(name);
    if (to.sizes() != from.sizes()) {
      throw Error(ExitCode::artefact, {.where = name,
                                       .what = "shape",
                                       .expected = to_string(Shape(to.sizes().vec())),
                                       .got = to_string(Shape(from.sizes().vec()))});
    }
    to.copy_(from);
  }
}

}  // namespace dsv32::training
