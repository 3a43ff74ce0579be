#include "src/reference/sums.h"

#include <algorithm>

#include "src/bridge/parallel.h"
#include "src/reference/ordered_sums.h"

namespace dsv32::reference {
namespace {

bool is_sequential(Summation order, const Tensor& x) {
  return order == Summation::sequential && x.scalar_type() == torch::kFloat32;
}

/// Rows of one task: enough work to be worth a thread, a multiple of the kernel's tile.
constexpr int64_t kRowsOfATask = 64;

/// a [G,n,k] times b [G,k,m].
Tensor product_of_rows(const Tensor& a, const Tensor& b) {
  const Tensor left = a.to(torch::kCPU).contiguous(), right = b.to(torch::kCPU).contiguous();
  const int64_t rows = left.size(1), depth = left.size(2), cols = right.size(2);
  Tensor product = torch::empty({left.size(0), rows, cols}, left.options());
  const int64_t tasks = (rows + kRowsOfATask - 1) / kRowsOfATask;  // of one group
  const float *a_data = left.const_data_ptr<float>(), *b_data = right.const_data_ptr<float>();
  float* c_data = product.mutable_data_ptr<float>();
  parallel_for(left.size(0) * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / tasks, row = task % tasks * kRowsOfATask;
      ordered_product({.a = a_data + (group * rows + row) * depth,
                       .b = b_data + group * depth * cols,
                       .c = c_data + (group * rows + row) * cols,
                       .rows = std::min(kRowsOfATask, rows - row),
                       .cols = cols,
                       .depth = depth,
                       .lda = depth,
                       .ldb = cols,
                       .ldc = cols});
    }
  });
  return product.to(a.device());
}

/// The same. Of a large transposed b, a weight's, the transposes are multiplied: these are the same
/// sums, and it is a that is copied.
Tensor ordered_batch_product(const Tensor& a, const Tensor& b) {
  const Tensor turned = b.transpose(-1, -2);
  if (b.is_contiguous() || !turned.is_contiguous() || a.size(1) >= b.size(1))
    return product_of_rows(a, b);
  const int64_t rows = a.size(1), more = (kOrderedCols - rows % kOrderedCols) % kOrderedCols;
  const Tensor filled = torch::constant_pad_nd(a, {0, 0, 0, more});
  return product_of_rows(turned, filled.transpose(-1, -2))
      .narrow(-1, 0, rows)
      .transpose(-1, -2)
      .contiguous();
}

struct OrderedProductFunction : torch::autograd::Function<OrderedProductFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& a, const Tensor& b) {
    ctx->save_for_backward({a, b});
    return ordered_batch_product(a, b);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    const auto saved = ctx->get_saved_variables();
    const Tensor& dc = upstream[0];
    const bool wants_a = ctx->needs_input_grad(0), wants_b = ctx->needs_input_grad(1);
    return {wants_a ? ordered_batch_product(dc, saved[1].transpose(-1, -2)) : Tensor(),
            wants_b ? ordered_batch_product(saved[0].transpose(-1, -2), dc) : Tensor()};
  }
};

struct RowSumsFunction : torch::autograd::Function<RowSumsFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x) {
    ctx->saved_data["depth"] = x.size(-1);
    const Tensor rows = x.to(torch::kCPU).contiguous();
    auto shape = rows.sizes().vec();
    shape.back() = 1;
    Tensor sums = torch::empty(shape, rows.options());
    const int64_t depth = rows.size(-1);
    const float* from = rows.const_data_ptr<float>();
    float* to = sums.mutable_data_ptr<float>();
    parallel_for(sums.numel(), kRowsOfATask, [&](int64_t begin, int64_t end) {
      ordered_row_sums(from + begin * depth, to + begin, end - begin, depth);
    });
    return sums.to(x.device());
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    auto shape = upstream[0].sizes().vec();
    shape.back() = ctx->saved_data["depth"].toInt();
    return {upstream[0].expand(shape)};
  }
};

/// x [n,in] float64 times weight [out,in]^T float32, rows of the weight widened while they are in a
/// cache.
Tensor widened_product(const Tensor& x, const Tensor& weight) {
  constexpr int64_t kRows = 64, kManyTokens = 256, kWidened = int64_t{1} << 24;
  const int64_t rows = weight.size(0), many = std::max(kRows, kWidened / weight.size(1));
  const int64_t step = x.size(0) < kManyTokens ? kRows : std::min(rows, many);
  Tensor out = torch::empty({x.size(0), rows}, x.options());
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t count = std::min(step, rows - first);
    out.narrow(1, first, count)
        .copy_(torch::matmul(x, weight.narrow(0, first, count).to(x.scalar_type()).t()));
  }
  return out;
}

/// x minus the largest of its row: the same softmax, without overflow. A row of -inf stays.
Tensor below_largest(const Tensor& x) { return x - x.amax(-1, /*keepdim=*/true).detach(); }

/// Steps of the mantissa in [0.5, 1) of a TF32 number: 11 significant bits.
constexpr double kTf32Steps = 2048;

Tensor product(Summation order, const Tensor& a, const Tensor& b) {
  if (!is_sequential(order, a)) return torch::matmul(a, b);
  const auto batch =
      at::infer_size(a.sizes().slice(0, a.dim() - 2), b.sizes().slice(0, b.dim() - 2));
  const int64_t groups = c10::multiply_integers(batch);
  const auto flat = [&](const Tensor& t) {
    std::vector<int64_t> shape(batch.begin(), batch.end());
    shape.insert(shape.end(), {t.size(-2), t.size(-1)});
    return t.expand(shape).reshape({groups, t.size(-2), t.size(-1)});
  };
  std::vector<int64_t> shape(batch.begin(), batch.end());
  shape.insert(shape.end(), {a.size(-2), b.size(-1)});
  return OrderedProductFunction::apply(flat(a), flat(b)).view(shape);
}

Tensor product_with_weight(Summation order, const Tensor& x, const Tensor& weight) {
  if (x.scalar_type() != weight.scalar_type())
    return widened_product(x.flatten(0, -2), weight).unflatten(0, x.sizes().slice(0, x.dim() - 1));
  if (!is_sequential(order, x)) return torch::linear(x, weight);
  auto shape = x.sizes().vec();
  shape.back() = weight.size(0);
  const int64_t tokens = c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
  const Tensor rows = x.reshape({1, tokens, x.size(-1)});
  return OrderedProductFunction::apply(rows, weight.t().unsqueeze(0)).view(shape);
}

}  // namespace

Tensor as_operand(const Tensor& x, Operands operands) {
  if (operands == Operands::exact) return x;
  const Tensor exact = x.detach();
  Tensor rounded;
  if (operands == Operands::tf32) {
    const auto [mantissa, exponent] = torch::frexp(exact);
    rounded = torch::ldexp(torch::round(mantissa * kTf32Steps) / kTf32Steps, exponent);
  } else {
    const auto narrow = operands == Operands::bfloat16 ? torch::kBFloat16 : torch::kFloat16;
    rounded = exact.to(narrow).to(x.scalar_type());
  }
  return x + (rounded - exact);
}

Tensor product(const Sums& sums, const Tensor& a, const Tensor& b) {
  const Tensor c = product(sums.order, as_operand(a, sums.operands), as_operand(b, sums.operands));
  return sums.result_too ? as_operand(c, sums.operands) : c;
}

Tensor product_with_weight(const Sums& sums, const Tensor& x, const Tensor& weight) {
  const Tensor y = product_with_weight(sums.order, as_operand(x, sums.operands),
                                       as_operand(weight, sums.operands));
  return sums.result_too ? as_operand(y, sums.operands) : y;
}

Tensor row_sums(Summation order, const Tensor& x) {
  if (!is_sequential(order, x)) return x.sum(-1, /*keepdim=*/true);
  return RowSumsFunction::apply(x);
}

Tensor softmax(Summation order, const Tensor& x) {
  if (!is_sequential(order, x)) return torch::softmax(x, -1);
  const Tensor powers = torch::exp(below_largest(x));
  return powers / row_sums(order, powers);
}

Tensor log_softmax(Summation order, const Tensor& x) {
  if (!is_sequential(order, x)) return torch::log_softmax(x, -1);
  const Tensor shifted = below_largest(x);
  return shifted - torch::log(row_sums(order, torch::exp(shifted)));
}

}  // namespace dsv32::reference
