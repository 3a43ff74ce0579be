#pragma once

#include <memory>

#include "src/model/implementation.h"

/// The face of src/reference: the model of docs/spec.md 1 in plain LibTorch, readable first.
namespace dsv32::reference {

/// `weights` is used layer by layer and must outlive the model.
std::unique_ptr<Implementation> make_reference(const ModelConfig& config,
                                               const WeightSource& weights);

}  // namespace dsv32::reference
