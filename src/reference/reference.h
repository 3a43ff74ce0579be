#pragma once

#include <memory>
#include <string>

#include "src/model/implementation.h"

/// The face of src/reference: the model of docs/spec.md 1 in plain LibTorch, readable first.
namespace dsv32::reference {

/// `weights` is used layer by layer and must outlive the model.
std::unique_ptr<Implementation> make_reference(const ModelConfig& config,
                                               const WeightSource& weights);

/// What has made the large float64 products of this process: "torch", or "OpenBLAS 0.3.34,
/// SkylakeX". Throws Error as a product does for a wrong DSV32_FLOAT64_BLAS.
std::string float64_products();

}  // namespace dsv32::reference
