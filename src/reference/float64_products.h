#pragma once

#include <torch/torch.h>

/// Products of float64 on the CPU: torch's, or OpenBLAS where it is there and not slower. Which one
/// is at work changes the last bits of the oracle and nothing else.
namespace dsv32::reference {

using torch::Tensor;

/// Do a [..,n,k] times b [..,k,m] go to OpenBLAS? Large ones do where a product of the same size
/// was not slower there, timed once per process; small ones stay with torch. The environment
/// variable DSV32_FLOAT64_BLAS = torch or openblas decides for every size. Throws Error (usage) for
/// another word, Error (environment) for openblas where it is not.
bool goes_to_openblas(const Tensor& a, const Tensor& b);

/// a [..,n,k] times b [..,k,m], float64 on the CPU, the same batch axes. Differentiable once.
/// Transposed and expanded operands are read where they lie; the work is split over torch's number
/// of threads.
Tensor openblas_product(const Tensor& a, const Tensor& b);

}  // namespace dsv32::reference
