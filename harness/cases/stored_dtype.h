#pragma once

#include <string>

#include "src/model/trace.h"

namespace dsv32::harness {

/// How the stored values contradict the dtype that the trace says it was made in, in words: values
/// that this type cannot hold in most taps, or no value anywhere that takes more than a narrower
/// one. Empty where they agree, or nothing can be said. Taps that a 16-bit model keeps in float32,
/// and the embedding, whose values are exact in every type, say nothing.
std::string dtype_contradiction(const Trace& trace, DType said);

}  // namespace dsv32::harness
