#include "src/optimized/ops/rms_norm.h"

#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "src/optimized/cpu/parallel.h"
#include "src/optimized/cpu/rows.h"

namespace dsv32::optimized::cpu {
namespace {

// Partial sums of dweight: a fixed number, so that the bits do not depend on the thread count.
constexpr int64_t kMaxPartials = 32;

template <typename T>
void forward(const RmsNormParams<T>& p) {
  const int64_t n = p.width;
  std::vector<float> weight(n);
  widen(p.weight, weight.data(), n);
  parallel_for(p.rows, row_grain(n), [&](int64_t begin, int64_t end) {
    std::vector<float> x(n), residual(n);
    for (int64_t row = begin; row < end; ++row) {
      widen(p.x + row * n, x.data(), n);
      if (p.residual != nullptr) {
        widen(p.residual + row * n, residual.data(), n);
        add(residual.data(), x.data(), n);
        narrow(x.data(), p.sum + row * n, n);
      }
      const float mean = dot(x.data(), x.data(), n) / static_cast<float>(n);
      const float rstd = 1.0f / std::sqrt(mean + p.eps);
      p.rstd[row] = rstd;
      scale(rstd, x.data(), x.data(), n);
      multiply(x.data(), weight.data(), x.data(), n);
      narrow(x.data(), p.y + row * n, n);
    }
  });
}

/// Rows [begin, end); adds their part of dweight to `dweight`.
template <typename T>
void backward_rows(const RmsNormBackwardParams<T>& p, const std::vector<float>& weight,
                   int64_t begin, int64_t end, float* dweight) {
  const int64_t n = p.width;
  std::vector<float> normed(n), dy(n), dx(n);
  for (int64_t row = begin; row < end; ++row) {
    const float rstd = p.rstd[row];
    widen(p.x + row * n, normed.data(), n);
    scale(rstd, normed.data(), normed.data(), n);
    widen(p.dy + row * n, dy.data(), n);
    add_product(dy.data(), normed.data(), dweight, n);
    multiply(dy.data(), weight.data(), dy.data(), n);
    const float mean = dot(dy.data(), normed.data(), n) / static_cast<float>(n);
    combine(rstd, dy.data(), -rstd * mean, normed.data(), dx.data(), n);
    if (p.dsum != nullptr) {
      widen(p.dsum + row * n, normed.data(), n);
      add(normed.data(), dx.data(), n);
    }
    narrow(dx.data(), p.dx + row * n, n);
  }
}

template <typename T>
void backward(const RmsNormBackwardParams<T>& p) {
  const int64_t n = p.width, partials = std::min(rms_norm_partials(p.rows), kMaxPartials);
  std::vector<float> weight(n);
  widen(p.weight, weight.data(), n);
  parallel_for(partials, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* dweight = p.dweight_partial + i * n;
      std::fill_n(dweight, n, 0.0f);
      backward_rows(p, weight, i * p.rows / partials, (i + 1) * p.rows / partials, dweight);
    }
  });
  std::fill_n(p.dweight, n, 0.0f);
  for (int64_t i = 0; i < partials; ++i) add(p.dweight_partial + i * n, p.dweight, n);
}

const auto run_forward = [](const auto& params) { forward(params); };
const auto run_backward = [](const auto& params) { backward(params); };

std::tuple<at::Tensor, at::Tensor> rms_norm(const at::Tensor& x, const at::Tensor& weight,
                                            double eps) {
  const auto out = run_rms_norm("rms_norm", x, std::nullopt, weight, eps, run_forward);
  return {out.y, out.rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& x,
                                                            const at::Tensor& residual,
                                                            const at::Tensor& weight, double eps) {
  const auto out = run_rms_norm("add_rms_norm", x, residual, weight, eps, run_forward);
  return {out.y, out.sum, out.rstd};
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& dy, const at::Tensor& x,
                                                     const at::Tensor& weight,
                                                     const at::Tensor& rstd,
                                                     const std::optional<at::Tensor>& dsum) {
  return run_rms_norm_backward(dy, x, weight, rstd, dsum, run_backward);
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("rms_norm", &rms_norm);
  m.impl("add_rms_norm", &add_rms_norm);
  m.impl("rms_norm_backward", &rms_norm_backward);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
