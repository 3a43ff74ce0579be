#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "harness/judge/verdict.h"
#include "src/model/implementation.h"

/// Our implementations by the names that --impl takes.
namespace dsv32::harness {

/// "reference", "optimized" and "optimized-simt" (its CUDA kernels, run by the SIMT executor on the
/// CPU).
const std::vector<std::string>& implementation_names();
/// Whose numbers an implementation makes. Throws Error (internal) for another name.
Party party_of(const std::string& name);
/// The subject that an implementation is: its name and `note` are the label, as in
/// "reference" + " float32, warmup".
Subject implementation_subject(const std::string& name, const std::string& note);
/// `name` is one of implementation_names(); `weights` must outlive the model.
std::unique_ptr<Implementation> make_model(const std::string& name, const ModelConfig& config,
                                           const WeightSource& weights);
/// Why it cannot run so: "float64: expected float32 or bfloat16"; empty: it can.
std::string cannot_run(const std::string& name, const ModelConfig& config, DType dtype,
                       const std::string& device);
/// What these implementations do not promise: an op, and when it may give other bits on another
/// run.
std::map<std::string, std::string> unpromised_bits(const std::vector<std::string>& names);
/// Its CUDA kernels run on the CPU, in the SIMT executor.
bool runs_in_executor(const std::string& name);
/// Rounds every op's result in the 16-bit modes, as kernels do that store what they make; the
/// reference rounds its taps alone.
bool rounds_every_op(const std::string& name);
/// Taps that its fused kernels never hold.
std::vector<std::string> unheld_taps(const std::string& name);

}  // namespace dsv32::harness
