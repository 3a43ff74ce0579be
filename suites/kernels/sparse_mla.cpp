// The attention kernels on the latent (sparse_mla, dense_mla) in the executor, against float64.

#include "src/optimized/kernels/sparse_mla.h"

#include <algorithm>
#include <memory>
#include <numeric>

#include "src/optimized/kernels/attention_tile.h"
#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized::DSV32_BACKEND;
using optimized::AttentionMutant;
using optimized::KeyLists;
using optimized::mla_head_tiles;
using optimized::MlaShape;
using optimized::SparseMlaMutant;

constexpr float kScale = 0.3f;

struct Shape {
  int64_t batch, queries, keys, heads, lora, rope;
  int64_t slots;        // 0: dense
  int64_t first_query;  // dense: cache index of the first query
  int64_t chunk;        // queries per chunk in the backward

  int64_t width() const { return lora + rope; }
  int64_t rows() const { return batch * queries * heads; }
  MlaShape mla() const { return {batch, queries, keys, heads, lora, width()}; }
};

// Slots around a block of 32 keys; heads around a tile of 32 or 64; widths with and without whole
// vectors, and the released ones; chunks that do and do not divide the queries.
const Shape kShapes[] = {
    {1, 1, 1, 1, 1, 1, 1, 0, 1},      {1, 2, 5, 3, 5, 3, 7, 0, 2},
    {3, 2, 40, 4, 16, 16, 31, 0, 1},  {1, 3, 70, 32, 24, 8, 32, 0, 2},
    {1, 1, 40, 33, 33, 4, 33, 0, 1},  {1, 2, 100, 65, 16, 8, 65, 0, 2},
    {1, 1, 36, 2, 512, 64, 34, 0, 1}, {3, 3, 3, 4, 16, 8, 0, 0, 2},
    {1, 2, 66, 3, 12, 5, 0, 31, 1},   {1, 3, 36, 5, 32, 32, 0, 33, 5},
};

template <typename T>
struct Inputs {
  Shape shape;
  std::vector<T> q, kv, dout;
  std::vector<int32_t> topk;
  std::unique_ptr<bool[]> mask;

  explicit Inputs(const Shape& s)
      : shape(s),
        q(random_values<T>(s.rows() * s.width(), 1)),
        kv(random_values<T>(s.batch * s.keys * s.width(), 2)),
        dout(random_values<T>(s.rows() * s.lora, 3)) {
    if (s.slots > 0) make_lists();
    if (s.slots == 0) make_mask();
  }

  KeyLists lists() const {
    const bool dense = topk.empty();
    return {.is_dense = dense,
            .topk = dense ? nullptr : topk.data(),
            .mask = mask.get(),
            .slots = dense ? shape.keys : shape.slots,
            .first_query = shape.first_query};
  }

  /// The keys of a query, in the order of its slots.
  std::vector<int64_t> keys_of(int64_t b, int64_t s) const {
    std::vector<int64_t> keys;
    if (topk.empty()) {
      for (int64_t t = 0; t <= shape.first_query + s && t < shape.keys; ++t) {
        if (mask[b * shape.keys + t]) keys.push_back(t);
      }
      return keys;
    }
    const int32_t* row = topk.data() + (b * shape.queries + s) * shape.slots;
    for (int64_t i = 0; i < shape.slots; ++i) {
      if (row[i] >= 0) keys.push_back(row[i]);
    }
    return keys;
  }

 private:
  /// Row i of all rows: full, one short of it, in any order, empty; then again.
  void make_lists() {
    std::mt19937_64 engine(4);
    for (int64_t row = 0; row < shape.batch * shape.queries; ++row) {
      std::vector<int32_t> keys(shape.keys);
      std::iota(keys.begin(), keys.end(), 0);
      std::shuffle(keys.begin(), keys.end(), engine);
      const int64_t kind = row % 4, count = std::min(shape.keys, shape.slots);
      keys.resize(kind == 3 ? 0 : kind == 1 ? count - count / 2 : count);
      if (kind != 2) std::sort(keys.begin(), keys.end());
      keys.resize(shape.slots, -1);
      topk.insert(topk.end(), keys.begin(), keys.end());
    }
  }

  /// Every fifth key is not there, and the first keys of every batch element but the first.
  void make_mask() {
    mask = std::make_unique<bool[]>(shape.batch * shape.keys);
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t t = 0; t < shape.keys; ++t) mask[b * shape.keys + t] = t % 5 != 4 && t >= b;
    }
  }
};

/// Dot product of `count` lanes, and that of the magnitudes.
struct Dot {
  double value = 0, size = 0;
};

template <typename T>
Dot dot(const T* a, const T* b, int64_t count) {
  Dot sum;
  for (int64_t i = 0; i < count; ++i) {
    const double term = static_cast<double>(optimized::to_float(a[i])) * optimized::to_float(b[i]);
    sum.value += term;
    sum.size += std::abs(term);
  }
  return sum;
}

struct Forward {
  Oracle out, lse;
  std::vector<double> spread;  // per row: how far the scores' sums may push a probability
};

template <typename T>
Forward forward_oracle(const Inputs<T>& in) {
  const Shape& shape = in.shape;
  const int64_t width = shape.width(), lora = shape.lora;
  Forward want{Oracle(shape.rows() * lora, true), Oracle(shape.rows(), true), {}};
  for (int64_t row = 0; row < shape.rows(); ++row) {
    const int64_t query = row / shape.heads, b = query / shape.queries;
    const auto keys = in.keys_of(b, query % shape.queries);
    std::vector<double> score;
    double top = -INFINITY, spread = 1, sum = 0;
    for (const int64_t key : keys) {
      const Dot s = dot(&in.q[row * width], &in.kv[(b * shape.keys + key) * width], width);
      score.push_back(kScale * s.value);
      top = std::max(top, score.back());
      spread = std::max(spread, 1 + kScale * s.size);
    }
    for (const double s : score) sum += std::exp(s - top);
    want.lse.value[row] = keys.empty() ? -INFINITY : top + std::log(sum);
    want.lse.scale[row] = spread;
    want.spread.push_back(spread);
    for (size_t i = 0; i < keys.size(); ++i) {
      const double prob = std::exp(score[i] - want.lse.value[row]);
      for (int64_t c = 0; c < lora; ++c) {
        const double v = optimized::to_float(in.kv[(b * shape.keys + keys[i]) * width + c]);
        want.out.value[row * lora + c] += prob * v;
        want.out.scale[row * lora + c] += prob * std::abs(v) * spread;
      }
    }
  }
  return want;
}

template <typename T>
std::string check_forward(const Inputs<T>& in, const Forward& want) {
  const Shape& shape = in.shape;
  auto out = unwritten<T>(shape.rows() * shape.lora);
  auto lse = unwritten<float>(shape.rows());
  launch_sparse_mla<T>({.q = in.q.data(),
                        .kv = in.kv.data(),
                        .out = out.data(),
                        .lse = lse.data(),
                        .lists = in.lists(),
                        .shape = shape.mla(),
                        .scale = kScale},
                       nullptr);
  return first_fault({beyond_limit("sparse_mla.lse", lse, want.lse),
                      beyond_limit("sparse_mla.out", out, want.out)});
}

/// What the backward is given: the forward's results in their dtypes.
template <typename T>
struct Saved {
  std::vector<T> out;
  std::vector<float> lse;

  explicit Saved(const Forward& forward) {
    for (const double x : forward.out.value) out.push_back(optimized::from_float<T>(x));
    for (const double x : forward.lse.value) lse.push_back(static_cast<float>(x));
  }
};

struct Backward {
  Oracle dq, dkv;
};

template <typename T>
Backward backward_oracle(const Inputs<T>& in, const Forward& forward, const Saved<T>& saved) {
  const Shape& shape = in.shape;
  const int64_t width = shape.width(), lora = shape.lora;
  Backward want{Oracle(shape.rows() * width, true), Oracle(shape.batch * shape.keys * width, true)};
  for (int64_t row = 0; row < shape.rows(); ++row) {
    const int64_t query = row / shape.heads, b = query / shape.queries;
    const Dot delta = dot(&in.dout[row * lora], &saved.out[row * lora], lora);
    for (const int64_t key : in.keys_of(b, query % shape.queries)) {
      const int64_t at = (b * shape.keys + key) * width;
      const Dot score = dot(&in.q[row * width], &in.kv[at], width);
      const Dot dprob = dot(&in.dout[row * lora], &in.kv[at], lora);
      const double prob = std::exp(kScale * score.value - saved.lse[row]);
      const double dscore = kScale * prob * (dprob.value - delta.value);
      const double spread = forward.spread[row];
      const double size = kScale * prob * (dprob.size + delta.size) * spread;
      for (int64_t c = 0; c < width; ++c) {
        const double q = optimized::to_float(in.q[row * width + c]);
        const double kv = optimized::to_float(in.kv[at + c]);
        const double dout = c < lora ? optimized::to_float(in.dout[row * lora + c]) : 0;
        want.dq.value[row * width + c] += dscore * kv;
        want.dq.scale[row * width + c] += size * std::abs(kv);
        want.dkv.value[at + c] += dscore * q + prob * dout;
        want.dkv.scale[at + c] += size * std::abs(q) + prob * spread * std::abs(dout);
      }
    }
  }
  return want;
}

template <typename T>
struct Gradients {
  std::vector<T> dq, dkv;
};

enum class Order { fixed, atomic };

template <typename T>
Gradients<T> run_backward(const Inputs<T>& in, const Saved<T>& saved, Order order) {
  const Shape& shape = in.shape;
  const bool fixed = order == Order::fixed;
  const int64_t elements = shape.batch * shape.keys * shape.width();
  Gradients<T> got{unwritten<T>(shape.rows() * shape.width()), unwritten<T>(elements)};
  auto sum = fixed ? unwritten<float>(elements) : std::vector<float>(elements);
  auto contributions = unwritten<float>(shape.chunk * mla_head_tiles<T>(shape.heads) *
                                        in.lists().slots * shape.width());
  std::vector<int32_t> slot_of_key(shape.chunk * shape.keys, 1 << 20);
  launch_sparse_mla_backward<T>({.dout = in.dout.data(),
                                 .out = saved.out.data(),
                                 .lse = saved.lse.data(),
                                 .q = in.q.data(),
                                 .kv = in.kv.data(),
                                 .dq = got.dq.data(),
                                 .dkv = got.dkv.data(),
                                 .dkv_sum = sum.data(),
                                 .contributions = fixed ? contributions.data() : nullptr,
                                 .slot_of_key = fixed ? slot_of_key.data() : nullptr,
                                 .chunk = shape.chunk,
                                 .lists = in.lists(),
                                 .shape = shape.mla(),
                                 .scale = kScale},
                                nullptr);
  if (!fixed) {
    for (int64_t i = 0; i < elements; ++i) got.dkv[i] = optimized::from_float<T>(sum[i]);
  }
  return got;
}

template <typename T>
std::string check_shape(const Inputs<T>& in) {
  const Forward forward = forward_oracle(in);
  const Saved<T> saved(forward);
  const Backward want = backward_oracle(in, forward, saved);
  return on_every_schedule([&] {
    const auto check_gradients = [&](Order order) {
      const Gradients<T> got = run_backward(in, saved, order);
      return first_fault({beyond_limit("sparse_mla.dq", got.dq, want.dq),
                          beyond_limit("sparse_mla.dkv", got.dkv, want.dkv)});
    };
    return first_fault({check_forward(in, forward), check_gradients(Order::fixed),
                        check_gradients(Order::atomic)});
  });
}

template <typename T>
std::string check_shapes() {
  for (const Shape& shape : kShapes) {
    const std::string fault = check_shape(Inputs<T>(shape));
    if (!fault.empty()) {
      return "shape " + std::to_string(&shape - kShapes) + ": " + fault;
    }
  }
  return "";
}

/// "" when the gradients have the same bits on every schedule.
template <typename T>
std::string check_determinism(Order order) {
  const Inputs<T> in({2, 9, 12, 40, 8, 8, 6, 0, 4});
  const Saved<T> saved(forward_oracle(in));
  optimized::simt::set_schedule_seed(0);
  const Gradients<T> first = run_backward(in, saved, order);
  return on_every_schedule([&] {
    const Gradients<T> again = run_backward(in, saved, order);
    const bool same = same_bits(first.dq, again.dq) && same_bits(first.dkv, again.dkv);
    return std::string(same ? "" : "other bits");
  });
}

TEST(SparseMlaKernel, MatchesFloat64InFloat32) { EXPECT_EQ(check_shapes<float>(), ""); }
TEST(SparseMlaKernel, MatchesFloat64InBf16) { EXPECT_EQ(check_shapes<bf16>(), ""); }

TEST(SparseMlaKernel, GivesTheSameBitsOnEverySchedule) {
  EXPECT_EQ(check_determinism<float>(Order::fixed), "");
  EXPECT_EQ(check_determinism<bf16>(Order::fixed), "");
}
TEST(SparseMlaKernel, AtomicAdditionsDoNotGiveTheSameBits) {
  EXPECT_NE(check_determinism<float>(Order::atomic), "");
}

TEST(SparseMlaKernel, AChunkOfAnySizeGivesTheSameBits) {
  Inputs<float> in({1, 7, 20, 3, 8, 8, 12, 0, 7});
  const Saved<float> saved(forward_oracle(in));
  const auto whole = run_backward(in, saved, Order::fixed);
  for (in.shape.chunk = 1; in.shape.chunk < 7; ++in.shape.chunk) {
    EXPECT_TRUE(same_bits(whole.dkv, run_backward(in, saved, Order::fixed).dkv));
  }
}

TEST(SparseMlaKernel, AnEntryBeyondTheKeysIsNoKey) {
  Inputs<float> in({1, 1, 40, 2, 8, 8, 33, 0, 1});
  const Forward want = forward_oracle(in);
  in.topk.resize(35);
  in.topk[33] = 40;
  in.topk[34] = 0x7fffffff;
  in.shape.slots = 35;
  EXPECT_EQ(check_forward(in, want), "");
}

TEST(SparseMlaKernel, EveryMutantIsFound) {
  expect_found(
      {SparseMlaMutant::wrong_tail, SparseMlaMutant::dropped_block, SparseMlaMutant::off_by_one,
       SparseMlaMutant::wrong_scale, SparseMlaMutant::dropped_chunk},
      check_shapes<float>);
  expect_found(
      {AttentionMutant::missing_barrier, AttentionMutant::no_rescale, AttentionMutant::stale_tail},
      check_shapes<float>);
}

}  // namespace
}  // namespace dsv32::suites
