#include "src/optimized/ops/moe.h"

#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "src/optimized/cpu/clones.h"
#include "src/optimized/cpu/exp.h"
#include "src/optimized/cpu/gemm.h"
#include "src/optimized/cpu/parallel.h"
#include "src/optimized/cpu/rows.h"

namespace dsv32::optimized::cpu {
namespace {

// Every product of a token's row runs over a block of this many rows, the last one filled with
// zeros: MKL promises the same bits for a row only among products of one shape.
constexpr int64_t kBlockRows = 48;
// Blocks of an expert that one task takes, so that its weights are widened once.
constexpr int64_t kTaskRows = 4 * kBlockRows;

/// Entries (token * k + slot) by expert; within an expert ascending.
struct Entries {
  std::vector<int64_t> order;
  std::vector<int64_t> offsets;   // [experts + 1]
  std::vector<int64_t> position;  // by entry; -1: no expert

  Entries(const int32_t* chosen, int64_t count, int64_t experts)
      : offsets(experts + 1), position(count, -1) {
    for (int64_t i = 0; i < count; ++i) {
      if (chosen[i] >= 0) ++offsets[chosen[i] + 1];
    }
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
    order.resize(offsets.back());
    std::vector<int64_t> next = offsets;
    for (int64_t i = 0; i < count; ++i) {
      if (chosen[i] < 0) continue;
      position[i] = next[chosen[i]]++;
      order[position[i]] = i;
    }
  }
};

/// Positions [begin, end) of one expert.
struct Task {
  int64_t expert, begin, end;
};

std::vector<Task> tasks_of(const Entries& entries) {
  std::vector<Task> tasks;
  for (size_t e = 0; e + 1 < entries.offsets.size(); ++e) {
    for (int64_t i = entries.offsets[e]; i < entries.offsets[e + 1]; i += kTaskRows) {
      tasks.push_back(
          {static_cast<int64_t>(e), i, std::min(i + kTaskRows, entries.offsets[e + 1])});
    }
  }
  return tasks;
}

/// y += a x
template <typename T>
DSV32_CLONES void add_scaled(float a, const T* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * to_float(x[i]);
}

/// inner = silu(gated) upped
template <typename T>
DSV32_CLONES void activate(const T* gated, const T* upped, T* inner, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = to_float(gated[i]);
    inner[i] = from_float<T>(g * sigmoid_of(g) * to_float(upped[i]));
  }
}

/// From w and dinner: gated and upped become their gradients, inner becomes w inner.
template <typename T>
DSV32_CLONES void activate_backward(float weight, const T* dinner, T* gated, T* upped, T* inner,
                                    int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = to_float(gated[i]), score = sigmoid_of(g), d = weight * to_float(dinner[i]);
    gated[i] = from_float<T>(d * to_float(upped[i]) * score * (1.0f + g * (1.0f - score)));
    upped[i] = from_float<T>(d * g * score);
    inner[i] = from_float<T>(weight * to_float(inner[i]));
  }
}

/// y = x + z
template <typename T>
DSV32_CLONES void add_both(const T* x, const T* z, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = to_float(x[i]) + to_float(z[i]);
}

/// The op's arguments as the tasks use them.
template <typename T>
struct Experts {
  at::Tensor x_rows, chosen_rows, weight_rows;
  const T* x;
  const float* weights;
  TensorTable<T> gate, up, down;
  Entries entries;
  std::vector<Task> tasks;
  int64_t tokens, k, hidden, width, count;

  explicit Experts(const MoeArguments& a)
      : x_rows(a.x.contiguous()),
        chosen_rows(a.experts.contiguous()),
        weight_rows(a.weights.contiguous()),
        x(pointer<T>(x_rows)),
        weights(pointer<float>(weight_rows)),
        gate(a.gate),
        up(a.up),
        down(a.down),
        entries(pointer<int32_t>(chosen_rows), a.experts.numel(), a.count()),
        tasks(tasks_of(entries)),
        tokens(a.tokens()),
        k(a.k()),
        hidden(a.hidden()),
        width(a.width()),
        count(a.count()) {}

  int64_t used() const { return static_cast<int64_t>(entries.order.size()); }

  /// The rows of `source` [tokens, hidden] at positions [begin, end), then zeros up to `rows`.
  void gather(const T* source, int64_t begin, int64_t end, int64_t rows, T* to) const {
    for (int64_t i = begin; i < end; ++i) {
      std::copy_n(source + entries.order[i] / k * hidden, hidden, to + (i - begin) * hidden);
    }
    std::fill(to + (end - begin) * hidden, to + rows * hidden, T{});
  }

  /// out[token] = sum over its entries in ascending position of scales[entry] rows[position],
  /// begun with what `out` holds where it is a sum already.
  template <typename Row, typename Out>
  void combine(const Row* rows, const float* scales, Out* out, bool add = false) const {
    parallel_for(tokens, row_grain(hidden * k), [&](int64_t begin, int64_t end) {
      std::vector<float> sum(hidden);
      std::vector<int64_t> own(k);
      for (int64_t token = begin; token < end; ++token) {
        std::iota(own.begin(), own.end(), token * k);
        std::sort(own.begin(), own.end(),
                  [&](int64_t a, int64_t b) { return entries.position[a] < entries.position[b]; });
        for (int64_t i = 0; i < hidden; ++i) sum[i] = add ? to_float(out[token * hidden + i]) : 0;
        for (const int64_t entry : own) {
          const int64_t position = entries.position[entry];
          const float scale = scales == nullptr ? 1.0f : scales[entry];
          if (position >= 0) add_scaled(scale, rows + position * hidden, sum.data(), hidden);
        }
        narrow(sum.data(), out + token * hidden, hidden);
      }
    });
  }
};

/// The forward of one expert's block, kept for the backward.
template <typename T>
struct Block {
  const Experts<T>& all;
  const T *gate, *up, *down;
  Transposed<T> gate_t, up_t, down_t;
  BufferOf<T> x, gated, upped, inner;

  Block(const Experts<T>& experts, int64_t expert)
      : all(experts),
        gate(all.gate.addresses()[expert]),
        up(all.up.addresses()[expert]),
        down(all.down.addresses()[expert]),
        gate_t(gate, all.hidden, all.width),
        up_t(up, all.hidden, all.width),
        down_t(down, all.width, all.hidden),
        x(kBlockRows * all.hidden),
        gated(kBlockRows * all.width),
        upped(kBlockRows * all.width),
        inner(kBlockRows * all.width) {}

  void run(int64_t begin, int64_t end) const {
    const int64_t hidden = all.hidden, width = all.width;
    const ProductShape shape{kBlockRows, width, hidden};
    all.gather(all.x, begin, end, kBlockRows, x.data());
    product(shape, {x.data(), hidden}, gate_t.factor(), gated.data(), width);
    product(shape, {x.data(), hidden}, up_t.factor(), upped.data(), width);
    activate(gated.data(), upped.data(), inner.data(), kBlockRows * width);
  }
};

/// Calls body(block, begin, end) for every block of rows.
template <typename T, typename Body>
void for_each_block(const Experts<T>& all, Body body) {
  parallel_for(static_cast<int64_t>(all.tasks.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Task& task = all.tasks[i];
      const Block<T> block(all, task.expert);
      for (int64_t begin = task.begin; begin < task.end; begin += kBlockRows) {
        body(block, begin, std::min(begin + kBlockRows, task.end));
      }
    }
  });
}

/// `add`: to what out holds.
template <typename T, typename Out>
void forward(const Experts<T>& all, Out* out, bool add = false) {
  const int64_t hidden = all.hidden, width = all.width;
  const BufferOf<T> y(all.used() * hidden);
  for_each_block(all, [&](const Block<T>& block, int64_t begin, int64_t end) {
    const BufferOf<T> rows(kBlockRows * hidden);
    block.run(begin, end);
    product({kBlockRows, hidden, width}, {block.inner.data(), width}, block.down_t.factor(),
            rows.data(), hidden);
    std::copy_n(rows.data(), (end - begin) * hidden, y.data() + begin * hidden);
  });
  all.combine(y.data(), all.weights, out, add);
}

/// By position: what the gradients of the weights are made of.
template <typename T>
struct BackwardRows {
  BufferOf<T> dgated, dupped, weighted;  // [used, width]
};

/// Fills `rows`, dx_entries [used, hidden] and dweights.
template <typename T>
void backward_blocks(const Experts<T>& all, const T* dout, const BackwardRows<T>& rows,
                     float* dx_entries, float* dweights) {
  const int64_t hidden = all.hidden, width = all.width;
  for_each_block(all, [&](const Block<T>& block, int64_t begin, int64_t end) {
    const BufferOf<T> dout_rows(kBlockRows * hidden), dinner(kBlockRows * width);
    block.run(begin, end);
    all.gather(dout, begin, end, kBlockRows, dout_rows.data());
    product({kBlockRows, width, hidden}, {dout_rows.data(), hidden}, {block.down, width},
            dinner.data(), width);
    for (int64_t i = 0; i < end - begin; ++i) {
      const int64_t entry = all.entries.order[begin + i], at = i * width;
      dweights[entry] = dot(dinner.data() + at, block.inner.data() + at, width);
      activate_backward(all.weights[entry], dinner.data() + at, block.gated.data() + at,
                        block.upped.data() + at, block.inner.data() + at, width);
    }
    const int64_t count = (end - begin) * width, first = begin * width;
    std::copy_n(block.gated.data(), count, rows.dgated.data() + first);
    std::copy_n(block.upped.data(), count, rows.dupped.data() + first);
    std::copy_n(block.inner.data(), count, rows.weighted.data() + first);
    T *dx = dout_rows.data(), *dx_up = block.x.data();  // dout and x are used up
    const ProductShape shape{kBlockRows, hidden, width};
    product(shape, {block.gated.data(), width}, {block.gate, hidden}, dx, hidden);
    product(shape, {block.upped.data(), width}, {block.up, hidden}, dx_up, hidden);
    add_both(dx, dx_up, dx_entries + begin * hidden, (end - begin) * hidden);
  });
}

/// gradient [rows, columns] = left^T right over `depth` positions.
template <typename T>
void weight_gradient(const ProductShape& shape, const T* left, const T* right,
                     const at::Tensor& gradient) {
  if (shape.depth == 0) {  // a thread of its own is outside of the caller's inference mode
    std::fill_n(mutable_pointer<T>(gradient), gradient.numel(), T{});
    return;
  }
  product(shape, {left, shape.rows, true}, {right, shape.columns}, mutable_pointer<T>(gradient),
          shape.columns);
}

template <typename T>
void backward(const Experts<T>& all, const T* dout, const MoeGradients& out) {
  const int64_t hidden = all.hidden, width = all.width, used = all.used();
  const BackwardRows<T> rows{BufferOf<T>(used * width), BufferOf<T>(used * width),
                             BufferOf<T>(used * width)};
  const Buffer dx_entries(used * hidden);
  backward_blocks(all, dout, rows, dx_entries.data(), mutable_pointer<float>(out.dweights));
  if (out.dx_sum.defined()) {
    all.combine(dx_entries.data(), nullptr, mutable_pointer<float>(out.dx_sum), true);
  } else {
    all.combine(dx_entries.data(), nullptr, mutable_pointer<T>(out.dx));
  }
  parallel_for(all.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t e = first; e < last; ++e) {
      const int64_t begin = all.entries.offsets[e], n = all.entries.offsets[e + 1] - begin;
      const BufferOf<T> gathered(n * hidden);
      all.gather(all.x, begin, begin + n, n, gathered.data());
      weight_gradient<T>({width, hidden, n}, rows.dgated.data() + begin * width, gathered.data(),
                         out.dgate[e]);
      weight_gradient<T>({width, hidden, n}, rows.dupped.data() + begin * width, gathered.data(),
                         out.dup[e]);
      all.gather(dout, begin, begin + n, n, gathered.data());
      weight_gradient<T>({hidden, width, n}, gathered.data(), rows.weighted.data() + begin * width,
                         out.ddown[e]);
    }
  });
}

at::Tensor moe(const at::Tensor& x, const at::Tensor& experts, const at::Tensor& weights,
               at::TensorList gate, at::TensorList up, at::TensorList down) {
  const MoeArguments arguments{x, experts, weights, gate, up, down};
  at::Tensor out = moe_output("moe", arguments);
  expect_experts("moe", arguments);
  dispatch_real({"moe", "x", x}, [&](auto type) {
    using T = decltype(type);
    forward(Experts<T>(arguments), mutable_pointer<T>(out));
  });
  return out;
}

void moe_add(const at::Tensor& sum, const at::Tensor& x, const at::Tensor& experts,
             const at::Tensor& weights, at::TensorList gate, at::TensorList up,
             at::TensorList down) {
  const MoeArguments arguments{x, experts, weights, gate, up, down};
  expect_sum("moe_add", sum, arguments);
  expect_experts("moe_add", arguments);
  dispatch_real({"moe_add", "x", x}, [&](auto type) {
    using T = decltype(type);
    forward(Experts<T>(arguments), mutable_pointer<float>(sum), true);
  });
}

void fill(const char* op, const at::Tensor& dout, const MoeArguments& arguments,
          const MoeGradients& out) {
  expect_experts(op, arguments);
  const at::Tensor dout_rows = dout.contiguous();
  dispatch_real({op, "x", arguments.x}, [&](auto type) {
    using T = decltype(type);
    backward(Experts<T>(arguments), pointer<T>(dout_rows), out);
  });
}

std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>,
           std::vector<at::Tensor>>
moe_backward(const at::Tensor& dout, const at::Tensor& x, const at::Tensor& experts,
             const at::Tensor& weights, at::TensorList gate, at::TensorList up,
             at::TensorList down) {
  const MoeArguments arguments{x, experts, weights, gate, up, down};
  const MoeGradients out = moe_gradients(dout, arguments);
  fill("moe_backward", dout, arguments, out);
  return out.tuple();
}

std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>,
           std::vector<at::Tensor>>
moe_backward_add(const at::Tensor& sum, const at::Tensor& dout, const at::Tensor& x,
                 const at::Tensor& experts, const at::Tensor& weights, at::TensorList gate,
                 at::TensorList up, at::TensorList down) {
  const MoeArguments arguments{x, experts, weights, gate, up, down};
  const MoeGradients out = moe_added_gradients(sum, dout, arguments);
  fill("moe_backward_add", dout, arguments, out);
  return out.tuple();
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("moe", &moe);
  m.impl("moe_add", &moe_add);
  m.impl("moe_backward", &moe_backward);
  m.impl("moe_backward_add", &moe_backward_add);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
