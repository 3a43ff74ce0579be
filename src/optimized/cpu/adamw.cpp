#include "src/optimized/ops/adamw.h"

#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "src/optimized/cpu/clones.h"
#include "src/optimized/cpu/parallel.h"

namespace dsv32::optimized::cpu {
namespace {

/// As AdamwParams; of one tensor's elements [begin, end).
template <typename G>
DSV32_CLONES void update(const AdamwTensor<G>& tensor, const AdamwFactors& f, float clip,
                         int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const float gradient = clip * to_float(tensor.gradient[i]);
    const float first = tensor.exp_avg[i] + f.beta1_rest * (gradient - tensor.exp_avg[i]);
    const float second = tensor.exp_avg_sq[i] * f.beta2 + f.beta2_rest * gradient * gradient;
    const float step = f.step_size * (first / (std::sqrt(second) / f.root + f.eps));
    tensor.exp_avg[i] = first;
    tensor.exp_avg_sq[i] = second;
    tensor.parameter[i] = tensor.parameter[i] * f.decay - step;
  }
}

// Partial sums per lane: a sum in a fixed order that vectorises.
constexpr int64_t kLanes = 8;

template <typename G>
DSV32_CLONES double sum_of_squares(const G* x, int64_t n) {
  double lanes[kLanes] = {};
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const double value = to_float(x[i + j]);
      lanes[j] += value * value;
    }
  }
  for (int64_t i = whole; i < n; ++i) {
    const double value = to_float(x[i]);
    lanes[i - whole] += value * value;
  }
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

/// Calls body(row, chunk, begin, end) for the elements of every chunk.
template <typename Row, typename Body>
void for_each_chunk(const ChunkTable<Row>& table, Body body) {
  parallel_for(table.chunks, 1, [&](int64_t first, int64_t last) {
    const auto is_before = [](int64_t chunk, const Row& row) { return chunk < row.first_chunk; };
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const Row& row =
          *(std::upper_bound(table.rows.begin(), table.rows.end(), chunk, is_before) - 1);
      const int64_t begin = (chunk - row.first_chunk) * kAdamwChunk;
      body(row, chunk, begin, std::min(begin + kAdamwChunk, row.count));
    }
  });
}

void adamw(at::TensorList parameters, at::TensorList gradients, at::TensorList exp_avg,
           at::TensorList exp_avg_sq, int64_t step, double lr, double beta1, double beta2,
           double eps, double weight_decay, const at::Tensor& clip_scale) {
  const AdamwArguments arguments{parameters, gradients, exp_avg, exp_avg_sq, clip_scale};
  const AdamwOptions options{step, lr, beta1, beta2, eps, weight_decay};
  expect_adamw(arguments, options);
  if (gradients.empty()) return;
  const std::vector<at::Tensor> rows = contiguous_each(gradients);
  const AdamwFactors factors = adamw_factors(options);
  const float clip = *pointer<float>(clip_scale);
  dispatch_real({"adamw_", "grads", gradients[0]}, [&](auto type) {
    const auto table = adamw_table<decltype(type)>(arguments, rows);
    for_each_chunk(table, [&](const auto& tensor, int64_t, int64_t begin, int64_t end) {
      update(tensor, factors, clip, begin, end);
    });
  });
}

at::Tensor grad_norm(at::TensorList gradients) {
  at::Tensor norm = grad_norm_output(gradients);
  const std::vector<at::Tensor> rows = contiguous_each(gradients);
  dispatch_real({"grad_norm", "grads", rows[0]}, [&](auto type) {
    const auto table = grad_norm_table<decltype(type)>(rows);
    std::vector<double> partial(table.chunks);
    for_each_chunk(table, [&](const auto& tensor, int64_t chunk, int64_t begin, int64_t end) {
      partial[chunk] = sum_of_squares(tensor.gradient + begin, end - begin);
    });
    double sum = 0;
    for (const double part : partial) sum += part;
    *mutable_pointer<double>(norm) = std::sqrt(sum);
  });
  return norm;
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("adamw_", &adamw);
  m.impl("grad_norm", &grad_norm);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
