#pragma once

/// What bench_ops times: every op of the library, forward and backward, on the sizes of a case,
/// each beside ATen ops that give the same.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "src/bridge/libtorch.h"
#include "src/model/config.h"

namespace dsv32::suites {

using at::Tensor;
using Tensors = std::vector<Tensor>;

/// Sizes of a batch, and the dtype of what may be float32 or bfloat16.
struct Setting {
  ModelConfig config;
  int64_t B, S;
  at::ScalarType dtype;

  int64_t tokens() const { return B * S; }
  double width() const { return static_cast<double>(at::elementSize(dtype)); }  // bytes
  Tensor normal(at::IntArrayRef shape) const { return at::randn(shape).to(dtype); }
};

/// What any implementation has to do. flops: products that the result needs, two per
/// multiplication, so it is judged by the machine's rate of matrix products. bytes: each argument
/// read once, each result written once; judged by the rate of copies.
struct Work {
  double flops = 0;
  double bytes = 0;
};

/// An op with its arguments. `composition` gives its first results; undefined ones are not
/// compared.
struct OpCase {
  std::string size;
  Work work;
  std::vector<c10::IValue> arguments;
  std::function<Tensors()> composition;
};

struct OpEntry {
  std::string op;       // name in the dispatcher
  std::string variant;  // "" or what tells it from another entry of the op
  std::vector<at::ScalarType> dtypes;
  std::function<OpCase(const Setting&)> make;
};

/// Norms, rope, hadamard, swiglu, cache, FP8 (bench_row_ops.cpp).
std::vector<OpEntry> row_ops();
/// Indexer, selection, attention, KL (bench_attention_ops.cpp).
std::vector<OpEntry> attention_ops();
/// Router, experts, loss, embedding, optimizer (bench_expert_ops.cpp).
std::vector<OpEntry> expert_ops();

/// Those of one attention layer whose time is shown for growing S.
std::vector<std::string> growing_ops();

/// Calls dsv32::NAME; lists of results one by one. An op without results gives its first argument.
Tensors call_op(const std::string& op, std::vector<c10::IValue> arguments);

using Forward = std::function<Tensors(const Tensors& leaves)>;

/// Autograd of `forward`. The first call makes its graph, later ones only go back through it: like
/// eager training it has kept what it needs, while an op of the library may compute it again.
std::function<Tensors()> autograd_of(Forward forward, Tensors leaves, Tensors gradients);

/// "2x544x1024"
std::string size_of(const Tensor& tensor);

}  // namespace dsv32::suites
