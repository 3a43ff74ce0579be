#pragma once

#include <memory>

#include "src/model/implementation.h"

/// The face of src/reference: the model of SPEC 1 in plain LibTorch, readable first.
namespace dsv32::reference {

/// `weights` is used layer by layer and must outlive the model.
std::unique_ptr<Implementation> make_reference(const ModelConfig& config,
                                               const WeightSource& weights);

/// Versions of torch and of the device, for reports.
std::string torch_version();
/// "cuda" when a device is there and asked for by `auto`, else "cpu"; throws Error (environment)
/// for cuda without a device.
std::string resolve_device(const std::string& asked);
void set_threads(int threads);

}  // namespace dsv32::reference
