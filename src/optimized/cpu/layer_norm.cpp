#include "src/optimized/ops/layer_norm.h"

#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "src/optimized/cpu/parallel.h"
#include "src/optimized/cpu/rows.h"

namespace dsv32::optimized::cpu {
namespace {

using Triple = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Partial sums of dweight and dbias: a fixed number, so that the bits do not depend on the thread
// count.
constexpr int64_t kMaxPartials = 32;

template <typename T>
std::vector<float> widened(const T* x, int64_t n) {
  std::vector<float> wide(n);
  widen(x, wide.data(), n);
  return wide;
}

template <typename T>
void forward(const LayerNormParams<T>& p) {
  const int64_t n = p.width;
  const std::vector<float> weight = widened(p.weight, n), bias = widened(p.bias, n);
  parallel_for(p.rows, row_grain(n), [&](int64_t begin, int64_t end) {
    std::vector<float> x(n);
    for (int64_t row = begin; row < end; ++row) {
      widen(p.x + row * n, x.data(), n);
      const float mean = sum(x.data(), n) / static_cast<float>(n);
      shift(-mean, x.data(), n);
      const float variance = dot(x.data(), x.data(), n) / static_cast<float>(n);
      const float rstd = 1.0f / std::sqrt(variance + p.eps);
      p.mean[row] = mean;
      p.rstd[row] = rstd;
      scale(rstd, x.data(), x.data(), n);
      multiply(x.data(), weight.data(), x.data(), n);
      add(bias.data(), x.data(), n);
      narrow(x.data(), p.y + row * n, n);
    }
  });
}

/// Rows [begin, end); adds their parts of dweight and dbias.
template <typename T>
void backward_rows(const LayerNormBackwardParams<T>& p, const std::vector<float>& weight,
                   int64_t begin, int64_t end, float* dweight, float* dbias) {
  const int64_t n = p.width;
  std::vector<float> normed(n), dy(n), dx(n);
  for (int64_t row = begin; row < end; ++row) {
    const float rstd = p.rstd[row];
    widen(p.x + row * n, normed.data(), n);
    shift(-p.mean[row], normed.data(), n);
    scale(rstd, normed.data(), normed.data(), n);
    widen(p.dy + row * n, dy.data(), n);
    add_product(dy.data(), normed.data(), dweight, n);
    add(dy.data(), dbias, n);
    multiply(dy.data(), weight.data(), dy.data(), n);
    const float slope_mean = sum(dy.data(), n) / static_cast<float>(n);
    const float dot_mean = dot(dy.data(), normed.data(), n) / static_cast<float>(n);
    combine(rstd, dy.data(), -rstd * dot_mean, normed.data(), dx.data(), n);
    shift(-rstd * slope_mean, dx.data(), n);
    narrow(dx.data(), p.dx + row * n, n);
  }
}

template <typename T>
void backward(const LayerNormBackwardParams<T>& p) {
  const int64_t n = p.width, partials = std::min(layer_norm_partials(p.rows), kMaxPartials);
  const std::vector<float> weight = widened(p.weight, n);
  parallel_for(partials, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float *dweight = p.dweight_partial + i * n, *dbias = p.dbias_partial + i * n;
      std::fill_n(dweight, n, 0.0f);
      std::fill_n(dbias, n, 0.0f);
      backward_rows(p, weight, i * p.rows / partials, (i + 1) * p.rows / partials, dweight, dbias);
    }
  });
  std::fill_n(p.dweight, n, 0.0f);
  std::fill_n(p.dbias, n, 0.0f);
  for (int64_t i = 0; i < partials; ++i) {
    add(p.dweight_partial + i * n, p.dweight, n);
    add(p.dbias_partial + i * n, p.dbias, n);
  }
}

Triple layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  double eps) {
  return run_layer_norm(x, weight, bias, eps, [](const auto& params) { forward(params); });
}

Triple layer_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                           const at::Tensor& mean, const at::Tensor& rstd) {
  return run_layer_norm_backward(dy, x, weight, mean, rstd,
                                 [](const auto& params) { backward(params); });
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("layer_norm", &layer_norm);
  m.impl("layer_norm_backward", &layer_norm_backward);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
