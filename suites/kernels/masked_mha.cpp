// The masked_mha kernels in the executor, against float64.

#include "src/optimized/kernels/masked_mha.h"

#include "src/optimized/kernels/attention_tile.h"
#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized::DSV32_BACKEND;
using optimized::AttentionMutant;
using optimized::MaskedMhaMutant;
using optimized::MhaShape;

constexpr float kScale = 0.3f;

// Keys around a word of 32, queries around a tile of 32 (float32) or 64 (bf16), widths with and
// without whole vectors, the released widths.
const MhaShape kShapes[] = {
    {1, 1, 1, 1, 1, 1, 1},    {2, 3, 31, 2, 5, 3, 7},    {1, 31, 32, 1, 8, 8, 16},
    {1, 32, 33, 2, 16, 8, 8}, {1, 33, 64, 1, 24, 16, 8}, {3, 2, 65, 3, 16, 16, 16},
    {1, 64, 40, 1, 8, 8, 8},  {1, 65, 70, 2, 8, 8, 24},  {1, 4, 34, 2, 128, 64, 128},
};

template <typename T>
struct Inputs {
  MhaShape shape;
  std::vector<T> q, k_nope, k_rope, v, dout;
  std::vector<int32_t> support;

  explicit Inputs(const MhaShape& s)
      : shape(s),
        q(random_values<T>(s.batch * s.queries * s.heads * s.width(), 1)),
        k_nope(random_values<T>(s.batch * s.keys * s.heads * s.nope, 2)),
        k_rope(random_values<T>(s.batch * s.keys * s.rope, 3)),
        v(random_values<T>(s.batch * s.keys * s.heads * s.value, 4)),
        dout(random_values<T>(s.batch * s.queries * s.heads * s.value, 5)) {
    make_support();
  }

  bool sees(int64_t b, int64_t s, int64_t t) const {
    const int32_t word = support[(b * shape.queries + s) * shape.words() + t / 32];
    return (static_cast<uint32_t>(word) >> t % 32 & 1u) != 0;
  }
  int64_t query_row(int64_t b, int64_t s, int64_t h) const {
    return (b * shape.queries + s) * shape.heads + h;
  }
  int64_t key_row(int64_t b, int64_t t, int64_t h) const {
    return (b * shape.keys + t) * shape.heads + h;
  }
  double query_lane(int64_t row, int64_t i) const {
    return optimized::to_float(q[row * shape.width() + i]);
  }
  double key_lane(int64_t b, int64_t t, int64_t h, int64_t i) const {
    if (i < shape.nope) return optimized::to_float(k_nope[key_row(b, t, h) * shape.nope + i]);
    return optimized::to_float(k_rope[(b * shape.keys + t) * shape.rope + i - shape.nope]);
  }
  double value_lane(int64_t b, int64_t t, int64_t h, int64_t i) const {
    return optimized::to_float(v[key_row(b, t, h) * shape.value + i]);
  }
  double dout_lane(int64_t row, int64_t i) const {
    return optimized::to_float(dout[row * shape.value + i]);
  }

 private:
  /// Half of the bits, all of them, none; whole words left out; bits set past the last key.
  void make_support() {
    std::mt19937_64 engine(6);
    for (int64_t row = 0; row < shape.batch * shape.queries; ++row) {
      for (int64_t word = 0; word < shape.words(); ++word) {
        const auto random = static_cast<uint32_t>(engine());
        const bool is_skipped = row % 8 == 3 || (row / 32 + word) % 3 == 1;
        uint32_t bits = row % 4 == 1 ? ~0u : random;
        if (is_skipped && row % 8 != 0) bits = 0;
        const bool is_last = word == shape.words() - 1;
        if (is_last) bits |= shape.keys % 32 == 0 ? 0 : ~0u << shape.keys % 32;
        support.push_back(static_cast<int32_t>(bits));
      }
    }
  }
};

struct Dot {
  double value = 0, size = 0;
  void add(double a, double b) {
    value += a * b;
    size += std::abs(a * b);
  }
};

template <typename T>
Dot score_of(const Inputs<T>& in, int64_t b, int64_t s, int64_t t, int64_t h) {
  Dot sum;
  for (int64_t i = 0; i < in.shape.width(); ++i) {
    sum.add(in.query_lane(in.query_row(b, s, h), i), in.key_lane(b, t, h, i));
  }
  return sum;
}

/// Calls body(b, s, h, row) for every row of the result.
template <typename Body>
void for_each_row(const MhaShape& shape, Body body) {
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t s = 0; s < shape.queries; ++s) {
      for (int64_t h = 0; h < shape.heads; ++h) {
        body(b, s, h, (b * shape.queries + s) * shape.heads + h);
      }
    }
  }
}

struct Forward {
  Oracle out, lse;
};

template <typename T>
Forward forward_oracle(const Inputs<T>& in) {
  const MhaShape& shape = in.shape;
  const int64_t rows = shape.batch * shape.queries * shape.heads;
  Forward want{Oracle(rows * shape.value, true), Oracle(rows, true)};
  for_each_row(shape, [&](int64_t b, int64_t s, int64_t h, int64_t row) {
    double sum = 0, spread = 1;
    for (int64_t t = 0; t < shape.keys; ++t) {
      if (!in.sees(b, s, t)) continue;
      const Dot score = score_of(in, b, s, t, h);
      sum += std::exp(kScale * score.value);
      spread = std::max(spread, 1 + kScale * score.size);
    }
    want.lse.value[row] = std::log(sum);
    want.lse.scale[row] = spread;
    for (int64_t t = 0; t < shape.keys; ++t) {
      if (!in.sees(b, s, t)) continue;
      const double prob = std::exp(kScale * score_of(in, b, s, t, h).value) / sum;
      for (int64_t i = 0; i < shape.value; ++i) {
        const double term = prob * in.value_lane(b, t, h, i);
        want.out.value[row * shape.value + i] += term;
        want.out.scale[row * shape.value + i] += std::abs(term) * spread;
      }
    }
  });
  return want;
}

template <typename T>
std::string check_forward(const Inputs<T>& in, const Forward& want) {
  auto out = unwritten<T>(want.out.value.size());
  auto lse = unwritten<float>(want.lse.value.size());
  launch_masked_mha<T>({.q = in.q.data(),
                        .k_nope = in.k_nope.data(),
                        .k_rope = in.k_rope.data(),
                        .v = in.v.data(),
                        .support = in.support.data(),
                        .out = out.data(),
                        .lse = lse.data(),
                        .shape = in.shape,
                        .scale = kScale},
                       nullptr);
  return first_fault({beyond_limit("masked_mha.lse", lse, want.lse),
                      beyond_limit("masked_mha.out", out, want.out)});
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
  Oracle dq, dk_nope, dk_rope, dv;
};

void add_to(Oracle& sum, int64_t at, double term, double size) {
  sum.value[at] += term;
  sum.scale[at] += std::abs(size);
}

template <typename T>
Backward backward_oracle(const Inputs<T>& in, const Forward& forward, const Saved<T>& saved) {
  const MhaShape& shape = in.shape;
  Backward want{Oracle(in.q.size(), true), Oracle(in.k_nope.size(), true),
                Oracle(in.k_rope.size(), true), Oracle(in.v.size(), true)};
  for_each_row(shape, [&](int64_t b, int64_t s, int64_t h, int64_t row) {
    Dot delta;
    for (int64_t i = 0; i < shape.value; ++i) {
      delta.add(in.dout_lane(row, i), optimized::to_float(saved.out[row * shape.value + i]));
    }
    const double spread = forward.lse.scale[row];
    for (int64_t t = 0; t < shape.keys; ++t) {
      if (!in.sees(b, s, t)) continue;
      const double prob = std::exp(kScale * score_of(in, b, s, t, h).value - saved.lse[row]);
      const int64_t key = in.key_row(b, t, h);
      Dot dprob;
      for (int64_t i = 0; i < shape.value; ++i) {
        const double dout = in.dout_lane(row, i);
        dprob.add(dout, in.value_lane(b, t, h, i));
        add_to(want.dv, key * shape.value + i, prob * dout, prob * dout * spread);
      }
      const double dscore = kScale * prob * (dprob.value - delta.value);
      const double size = kScale * prob * (dprob.size + delta.size) * spread;
      for (int64_t i = 0; i < shape.width(); ++i) {
        const double q = in.query_lane(row, i), k = in.key_lane(b, t, h, i);
        add_to(want.dq, row * shape.width() + i, dscore * k, size * k);
        if (i < shape.nope) {
          add_to(want.dk_nope, key * shape.nope + i, dscore * q, size * q);
        } else {
          add_to(want.dk_rope, (b * shape.keys + t) * shape.rope + i - shape.nope, dscore * q,
                 size * q);
        }
      }
    }
  });
  return want;
}

template <typename T>
struct Gradients {
  std::vector<T> dq, dk_nope, dk_rope, dv;
};

template <typename T>
Gradients<T> run_backward(const Inputs<T>& in, const Saved<T>& saved) {
  const MhaShape& shape = in.shape;
  Gradients<T> got{unwritten<T>(in.q.size()), unwritten<T>(in.k_nope.size()),
                   unwritten<T>(in.k_rope.size()), unwritten<T>(in.v.size())};
  auto delta = unwritten<float>(saved.lse.size());
  auto heads = unwritten<float>(shape.batch * shape.keys * shape.heads * shape.rope);
  launch_masked_mha_backward<T>({.dout = in.dout.data(),
                                 .out = saved.out.data(),
                                 .lse = saved.lse.data(),
                                 .q = in.q.data(),
                                 .k_nope = in.k_nope.data(),
                                 .k_rope = in.k_rope.data(),
                                 .v = in.v.data(),
                                 .support = in.support.data(),
                                 .dq = got.dq.data(),
                                 .dk_nope = got.dk_nope.data(),
                                 .dk_rope = got.dk_rope.data(),
                                 .dv = got.dv.data(),
                                 .delta = delta.data(),
                                 .dk_rope_heads = heads.data(),
                                 .shape = shape,
                                 .scale = kScale},
                                nullptr);
  return got;
}

template <typename T>
std::string check_shape(const Inputs<T>& in) {
  const Forward forward = forward_oracle(in);
  const Saved<T> saved(forward);
  const Backward want = backward_oracle(in, forward, saved);
  return on_every_schedule([&] {
    const std::string fault = check_forward(in, forward);
    if (!fault.empty()) return fault;
    const Gradients<T> got = run_backward(in, saved);
    return first_fault({beyond_limit("masked_mha.dq", got.dq, want.dq),
                        beyond_limit("masked_mha.dk_nope", got.dk_nope, want.dk_nope),
                        beyond_limit("masked_mha.dk_rope", got.dk_rope, want.dk_rope),
                        beyond_limit("masked_mha.dv", got.dv, want.dv)});
  });
}

template <typename T>
std::string check_shapes() {
  for (const MhaShape& shape : kShapes) {
    const std::string fault = check_shape(Inputs<T>(shape));
    if (!fault.empty()) return "shape " + std::to_string(&shape - kShapes) + ": " + fault;
  }
  return "";
}

template <typename T>
std::string check_determinism() {
  const Inputs<T> in({1, 66, 40, 3, 8, 8, 8});
  const Saved<T> saved(forward_oracle(in));
  optimized::simt::set_schedule_seed(0);
  const Gradients<T> first = run_backward(in, saved);
  return on_every_schedule([&] {
    const Gradients<T> again = run_backward(in, saved);
    const bool same = same_bits(first.dq, again.dq) && same_bits(first.dk_nope, again.dk_nope) &&
                      same_bits(first.dk_rope, again.dk_rope) && same_bits(first.dv, again.dv);
    return std::string(same ? "" : "other bits");
  });
}

TEST(MaskedMhaKernel, MatchesFloat64InFloat32) { EXPECT_EQ(check_shapes<float>(), ""); }
TEST(MaskedMhaKernel, MatchesFloat64InBf16) { EXPECT_EQ(check_shapes<bf16>(), ""); }
TEST(MaskedMhaKernel, GivesTheSameBitsOnEverySchedule) {
  EXPECT_EQ(check_determinism<float>(), "");
  EXPECT_EQ(check_determinism<bf16>(), "");
}

TEST(MaskedMhaKernel, EveryMutantIsFound) {
  expect_found(
      {MaskedMhaMutant::wrong_tail, MaskedMhaMutant::dropped_block, MaskedMhaMutant::wrong_scale,
       MaskedMhaMutant::skipped_rows, MaskedMhaMutant::wrong_word, MaskedMhaMutant::dropped_head},
      check_shapes<float>);
  expect_found(
      {AttentionMutant::missing_barrier, AttentionMutant::no_rescale, AttentionMutant::stale_tail},
      check_shapes<float>);
}

}  // namespace
}  // namespace dsv32::suites
