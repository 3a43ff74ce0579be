#include "src/optimized/ops/linear_cross_entropy.h"

#include <torch/library.h>

#include <cmath>

#include "src/optimized/cpu/clones.h"
#include "src/optimized/cpu/exp.h"
#include "src/optimized/cpu/gemm.h"
#include "src/optimized/cpu/parallel.h"
#include "src/optimized/cpu/rows.h"

namespace dsv32::optimized::cpu {
namespace {

// Rows of a product that one thread makes: a fixed number, so that the bits do not depend on the
// number of threads.
constexpr int64_t kProductRows = 256;

/// c = a b + beta c over blocks of rows in parallel; c is contiguous.
void multiply(const ProductShape& shape, const Factor& a, const Factor& b, float beta,
              const at::Tensor& c) {
  float* result = mutable_pointer<float>(c);
  const int64_t blocks = (shape.rows + kProductRows - 1) / kProductRows;
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * kProductRows; row < std::min(end * kProductRows, shape.rows);
         row += kProductRows) {
      const Factor own{a.data + row * (a.transposed ? 1 : a.stride), a.stride, a.transposed};
      const int64_t rows = std::min(kProductRows, shape.rows - row);
      gemm({rows, shape.columns, shape.depth}, 1, own, b, beta, result + row * shape.columns,
           shape.columns);
    }
  });
}

/// A contiguous matrix.
Factor factor(const at::Tensor& matrix, bool transposed = false) {
  return {pointer<float>(matrix), matrix.size(1), transposed};
}

DSV32_CLONES float highest_of(const float* x, int64_t n) {
  float highest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) highest = x[i] > highest ? x[i] : highest;
  return highest;
}

// Partial sums per lane: a sum in a fixed order that vectorises.
constexpr int64_t kLanes = 16;

DSV32_CLONES float sum_of_exp(const float* x, float shift, int64_t n) {
  float lanes[kLanes] = {};
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += exp_of(x[i + j] - shift);
  }
  for (int64_t i = whole; i < n; ++i) lanes[i - whole] += exp_of(x[i] - shift);
  double sum = 0;
  for (const float lane : lanes) sum += lane;
  return static_cast<float>(sum);
}

/// A log-sum-exp in two parts.
struct Lse {
  explicit Lse(double lse) : high(static_cast<float>(lse)), low(static_cast<float>(lse - high)) {}
  float high, low;
};

DSV32_CLONES void scaled_probs(const float* x, const Lse& lse, float scale, float* y, int64_t n) {
  const float high = lse.high, low = lse.low;
  for (int64_t i = 0; i < n; ++i) y[i] = exp_of(x[i] - high - low) * scale;
}

struct Steps {
  at::Tensor operand(const at::Tensor& x) const { return x.to(at::kFloat).contiguous(); }

  at::Tensor logits(const at::Tensor& x, const at::Tensor& w) const {
    at::Tensor result = at::empty({x.size(0), w.size(0)}, x.options());
    multiply({x.size(0), w.size(0), x.size(1)}, factor(x), factor(w, true), 0, result);
    return result;
  }

  void add_dx(const at::Tensor& dlogits, const at::Tensor& w, const at::Tensor& dx) const {
    multiply({dx.size(0), dx.size(1), w.size(0)}, factor(dlogits), factor(w), 1, dx);
  }

  void add_dweight(const at::Tensor& dlogits, const at::Tensor& x,
                   const at::Tensor& dweight) const {
    const ProductShape shape{dweight.size(0), dweight.size(1), x.size(0)};
    multiply(shape, factor(dlogits, true), factor(x), 1, dweight);
  }

  void update(const CrossEntropyChunkParams& p) const {
    parallel_for(p.rows, row_grain(p.columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const float* logits = p.logits + row * p.columns;
        const float before = p.highest[row];
        const float now = std::max(before, highest_of(logits, p.columns));
        const float shift = std::isinf(now) && now < 0 ? 0.0f : now;
        p.sum[row] = p.sum[row] * exp_of(before - shift) + sum_of_exp(logits, shift, p.columns);
        p.highest[row] = now;
        const int64_t label = p.labels[row] - p.first_column;
        if (label >= 0 && label < p.columns) p.picked[row] = logits[label];
      }
    });
  }

  void finish(const CrossEntropyLossParams& p) const {
    double loss = 0;
    int64_t count = 0;
    for (int64_t row = 0; row < p.rows; ++row) {
      const double lse = p.highest[row] + std::log(static_cast<double>(p.sum[row]));
      p.lse[row] = lse;
      if (p.labels[row] == kIgnoredLabel) continue;
      loss += lse - p.picked[row];
      ++count;
    }
    *p.loss = static_cast<float>(loss / static_cast<double>(count));
  }

  at::Tensor gradient(const at::Tensor& logits, const CrossEntropyGradientParams<float>& p) const {
    parallel_for(p.rows, row_grain(p.columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float* dlogits = p.dlogits + row * p.columns;
        if (p.labels[row] == kIgnoredLabel) {
          std::fill_n(dlogits, p.columns, 0.0f);
          continue;
        }
        const int64_t label = p.labels[row] - p.first_column;
        const bool is_here = label >= 0 && label < p.columns;
        const Lse lse(p.lse[row]);
        const float* logits = p.logits + row * p.columns;
        const float hit = is_here ? std::exp(logits[label] - lse.high - lse.low) : 0.0f;
        scaled_probs(logits, lse, *p.scale, dlogits, p.columns);
        if (is_here) dlogits[label] = (hit - 1.0f) * *p.scale;
      }
    });
    return logits;
  }
};

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& x,
                                                        const at::Tensor& weight,
                                                        const at::Tensor& labels) {
  return run_linear_cross_entropy(x, weight, labels, Steps{});
}

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy_backward(const at::Tensor& dloss,
                                                                 const at::Tensor& x,
                                                                 const at::Tensor& weight,
                                                                 const at::Tensor& labels,
                                                                 const at::Tensor& lse) {
  return run_linear_cross_entropy_backward(dloss, x, weight, labels, lse, Steps{});
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("linear_cross_entropy", &linear_cross_entropy);
  m.impl("linear_cross_entropy_backward", &linear_cross_entropy_backward);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
