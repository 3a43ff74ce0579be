#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <tuple>

#include "src/optimized/kernels/linear_cross_entropy.h"
#include "src/optimized/ops/arguments.h"
#include "src/optimized/ops/indices.h"

/// The loops over chunks, the same for every kernel of the op. A backend brings `Steps`:
///   operand(x)               a bf16 or float32 matrix as its products take it
///   logits(x, w)             x w^T, [rows,columns] float32
///   add_dx(d, w, dx)         dx += d w, dx [rows,hidden] float32
///   add_dweight(d, x, dw)    dw += d^T x, dw [columns,hidden] float32
///   gradient(chunk params of float) -> d     d as the products take it
///   update(CrossEntropyChunkParams), finish(CrossEntropyLossParams)
namespace dsv32::optimized {

// Logits of a chunk: 1024 x 2048 float32 are 8 MiB.
constexpr int64_t kLossTokens = 1024;
constexpr int64_t kLossColumns = 2048;
// Tokens whose dx is kept in float32 at a time.
constexpr int64_t kLossGradientTokens = 4096;

/// Checks the arguments; returns loss [] float32 and lse [N] float64, not filled.
std::tuple<at::Tensor, at::Tensor> linear_cross_entropy_outputs(const char* op, const at::Tensor& x,
                                                                const at::Tensor& weight,
                                                                const at::Tensor& labels);
/// Checks the arguments; returns dx and dweight, zeros.
std::tuple<at::Tensor, at::Tensor> linear_cross_entropy_gradients(const at::Tensor& dloss,
                                                                  const at::Tensor& x,
                                                                  const at::Tensor& weight,
                                                                  const at::Tensor& labels,
                                                                  const at::Tensor& lse);

/// Calls body(first, count) for [begin, end) in pieces of `step`.
template <typename Body>
void in_chunks(int64_t begin, int64_t end, int64_t step, Body body) {
  for (int64_t first = begin; first < end; first += step) body(first, std::min(step, end - first));
}

template <typename Steps>
std::tuple<at::Tensor, at::Tensor> run_linear_cross_entropy(const at::Tensor& x,
                                                            const at::Tensor& weight,
                                                            const at::Tensor& labels, Steps steps) {
  auto [loss, lse] = linear_cross_entropy_outputs("linear_cross_entropy", x, weight, labels);
  expect_indices({"linear_cross_entropy", "labels", labels}, weight.size(0), kIgnoredLabel);
  const int64_t tokens = x.size(0);
  const at::Tensor targets = labels.contiguous();
  const auto floats = lse.options().dtype(at::kFloat);
  const at::Tensor highest = at::full({tokens}, -std::numeric_limits<float>::infinity(), floats);
  const at::Tensor sum = at::zeros({tokens}, floats);
  const at::Tensor picked = at::full({tokens}, std::numeric_limits<float>::quiet_NaN(), floats);
  in_chunks(0, weight.size(0), kLossColumns, [&](int64_t column, int64_t columns) {
    const at::Tensor w = steps.operand(weight.narrow(0, column, columns));
    in_chunks(0, tokens, kLossTokens, [&](int64_t row, int64_t rows) {
      const at::Tensor logits = steps.logits(steps.operand(x.narrow(0, row, rows)), w);
      steps.update({.logits = pointer<float>(logits),
                    .labels = pointer<int64_t>(targets) + row,
                    .highest = mutable_pointer<float>(highest) + row,
                    .sum = mutable_pointer<float>(sum) + row,
                    .picked = mutable_pointer<float>(picked) + row,
                    .rows = rows,
                    .columns = columns,
                    .first_column = column});
    });
  });
  steps.finish({.labels = pointer<int64_t>(targets),
                .highest = pointer<float>(highest),
                .sum = pointer<float>(sum),
                .picked = pointer<float>(picked),
                .lse = mutable_pointer<double>(lse),
                .loss = mutable_pointer<float>(loss),
                .rows = tokens});
  return {loss, lse};
}

/// Rows of a gradient as float32 sums: the gradient itself, or memory that is added to it at the
/// end.
class GradientRows {
 public:
  GradientRows(const at::Tensor& gradient, int64_t first, int64_t count)
      : rows_(gradient.narrow(0, first, count)),
        sums_(rows_.scalar_type() == at::kFloat ? rows_ : at::zeros_like(rows_, at::kFloat)) {}
  const at::Tensor& sums() const { return sums_; }
  void finish() const {
    if (!sums_.is_same(rows_)) rows_.add_(sums_);
  }

 private:
  at::Tensor rows_, sums_;
};

template <typename Steps>
std::tuple<at::Tensor, at::Tensor> run_linear_cross_entropy_backward(
    const at::Tensor& dloss, const at::Tensor& x, const at::Tensor& weight,
    const at::Tensor& labels, const at::Tensor& lse, Steps steps) {
  constexpr const char* op = "linear_cross_entropy_backward";
  auto [dx, dweight] = linear_cross_entropy_gradients(dloss, x, weight, labels, lse);
  expect_indices({op, "labels", labels}, weight.size(0), kIgnoredLabel);
  const at::Tensor targets = labels.contiguous(), lse_rows = lse.contiguous();
  const at::Tensor scale = dloss / labels.ne(kIgnoredLabel).sum();
  in_chunks(0, x.size(0), kLossGradientTokens, [&](int64_t begin, int64_t count) {
    const GradientRows dx_rows(dx, begin, count);
    in_chunks(0, weight.size(0), kLossColumns, [&](int64_t column, int64_t columns) {
      const GradientRows dweight_rows(dweight, column, columns);
      const at::Tensor w = steps.operand(weight.narrow(0, column, columns));
      in_chunks(begin, begin + count, kLossTokens, [&](int64_t row, int64_t rows) {
        const at::Tensor own = steps.operand(x.narrow(0, row, rows));
        const at::Tensor logits = steps.logits(own, w);
        const at::Tensor dlogits = steps.gradient(
            logits, CrossEntropyGradientParams<float>{.logits = pointer<float>(logits),
                                                      .labels = pointer<int64_t>(targets) + row,
                                                      .lse = pointer<double>(lse_rows) + row,
                                                      .scale = pointer<float>(scale),
                                                      .dlogits = mutable_pointer<float>(logits),
                                                      .rows = rows,
                                                      .columns = columns,
                                                      .first_column = column});
        steps.add_dx(dlogits, w, dx_rows.sums().narrow(0, row - begin, rows));
        steps.add_dweight(dlogits, own, dweight_rows.sums());
      });
      dweight_rows.finish();
    });
    dx_rows.finish();
  });
  return {dx, dweight};
}

}  // namespace dsv32::optimized
