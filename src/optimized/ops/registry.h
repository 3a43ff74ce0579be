#pragma once

#include <torch/library.h>

/// Ops live in two namespaces with the same schemas and Meta functions: `dsv32` has the CPU kernel
/// on the CPU key and the CUDA kernel on the CUDA key; `dsv32_simt` has the CUDA kernel, run by the
/// SIMT executor, on the CPU key.

/// DSV32_OPS(schemas, meta): two functions of a torch::Library&, once per op file.
#define DSV32_OPS(schemas, meta)                        \
  TORCH_LIBRARY_FRAGMENT(dsv32, m) { schemas(m); }      \
  TORCH_LIBRARY_FRAGMENT(dsv32_simt, m) { schemas(m); } \
  TORCH_LIBRARY_IMPL(dsv32, Meta, m) { meta(m); }       \
  TORCH_LIBRARY_IMPL(dsv32_simt, Meta, m) { meta(m); }
