// The routed experts' kernels in the executor, against float64.

#include "src/optimized/kernels/moe.h"

#include <algorithm>
#include <numeric>

#include "src/optimized/kernels/tile_product.h"
#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized::DSV32_BACKEND;
using namespace optimized;

struct Shape {
  int64_t tokens, hidden, width, experts, k;
};

// Around a tile (64) of positions, hidden and width, and around a tile of depth (32); experts
// without tokens; one expert for all.
const Shape kShapes[] = {{1, 1, 1, 1, 1}, {5, 65, 33, 4, 3}, {65, 31, 8, 1, 1}, {2, 72, 64, 3, 2}};

template <typename T>
struct Inputs {
  Shape shape;
  std::vector<int32_t> chosen;
  std::vector<float> weights;
  std::vector<T> x, dout, gate, up, down;

  explicit Inputs(const Shape& s)
      : shape(s),
        weights(random_values<float>(s.tokens * s.k, 1, 0.3, 1)),
        x(random_values<T>(s.tokens * s.hidden, 2)),
        dout(random_values<T>(s.tokens * s.hidden, 3)),
        gate(random_values<T>(s.experts * s.width * s.hidden, 4, 0.5)),
        up(random_values<T>(s.experts * s.width * s.hidden, 5, 0.5)),
        down(random_values<T>(s.experts * s.hidden * s.width, 6, 0.5)) {
    std::mt19937_64 engine(7);
    std::vector<int32_t> ids(s.experts);
    std::iota(ids.begin(), ids.end(), 0);
    for (int64_t t = 0; t < s.tokens; ++t) {
      // The last expert is left to every third token, and the slots are in any order.
      const bool all = t % 3 == 2 || s.k == s.experts;
      std::shuffle(ids.begin(), ids.end(), engine);
      std::vector<int32_t> own = ids;
      if (!all) own.erase(std::find(own.begin(), own.end(), s.experts - 1));
      chosen.insert(chosen.end(), own.begin(), own.begin() + s.k);
    }
    if (s.tokens > 1) chosen[1] = -1;  // a slot without an expert
  }

  /// Tokens [begin, end) alone.
  Inputs part(int64_t begin, int64_t end) const {
    Inputs own = *this;
    const auto cut = [&](auto& values, int64_t size) {
      values = {values.begin() + begin * size, values.begin() + end * size};
    };
    own.shape.tokens = end - begin;
    cut(own.chosen, shape.k);
    cut(own.weights, shape.k);
    cut(own.x, shape.hidden);
    cut(own.dout, shape.hidden);
    return own;
  }

  bool valid(int64_t entry) const { return chosen[entry] >= 0; }
};

/// A tensor per expert, the way the op gets them.
template <typename T>
std::vector<T*> per_expert(std::vector<T>& values, int64_t experts) {
  std::vector<T*> pointers;
  for (int64_t e = 0; e < experts; ++e) {
    pointers.push_back(values.data() + e * (values.size() / experts));
  }
  return pointers;
}

template <typename T>
struct Results {
  std::vector<int32_t> order;
  std::vector<T> out, dx, dgate, dup, ddown;
  std::vector<float> dweights;
};

template <typename T>
Results<T> run(const Inputs<T>& given) {
  Inputs<T> in = given;
  const Shape& s = in.shape;
  const int64_t entries = s.tokens * s.k, matrix = s.experts * s.width * s.hidden;
  Results<T> r{.order = std::vector<int32_t>(entries, -7),
               .out = unwritten<T>(s.tokens * s.hidden),
               .dx = unwritten<T>(s.tokens * s.hidden),
               .dgate = unwritten<T>(matrix),
               .dup = unwritten<T>(matrix),
               .ddown = unwritten<T>(matrix),
               .dweights = std::vector<float>(entries)};
  std::vector<int32_t> counts(s.experts), offsets(s.experts + 1), tiles(s.experts + 1);
  std::vector<int32_t> position(entries, -7);
  auto inner = unwritten<T>(entries * s.width), weighted = inner, dgated = inner, dupped = inner;
  auto gated = unwritten<float>(entries * s.width), upped = gated, dinner = gated;
  auto y = unwritten<float>(entries * s.hidden), dx_entries = y;
  const auto gate = per_expert(in.gate, s.experts), up = per_expert(in.up, s.experts);
  const auto down = per_expert(in.down, s.experts), dgate = per_expert(r.dgate, s.experts);
  const auto dup = per_expert(r.dup, s.experts), ddown = per_expert(r.ddown, s.experts);

  MoeParams<T> forward{.sort = {.chosen = in.chosen.data(),
                                .counts = counts.data(),
                                .offsets = offsets.data(),
                                .tiles = tiles.data(),
                                .order = r.order.data(),
                                .position = position.data(),
                                .tokens = s.tokens,
                                .k = s.k,
                                .experts = s.experts},
                       .x = in.x.data(),
                       .weights = in.weights.data(),
                       .gate = gate.data(),
                       .up = up.data(),
                       .down = down.data(),
                       .out = r.out.data(),
                       .inner = inner.data(),
                       .y = y.data(),
                       .hidden = s.hidden,
                       .width = s.width};
  launch_moe(forward, nullptr);
  inner = unwritten<T>(entries * s.width);
  forward.inner = inner.data();
  forward.gated = gated.data();
  forward.upped = upped.data();
  launch_moe_backward<T>({.forward = forward,
                          .dout = in.dout.data(),
                          .dx = r.dx.data(),
                          .dweights = r.dweights.data(),
                          .dgate = dgate.data(),
                          .dup = dup.data(),
                          .ddown = ddown.data(),
                          .dinner = dinner.data(),
                          .weighted = weighted.data(),
                          .dgated = dgated.data(),
                          .dupped = dupped.data(),
                          .dx_entries = dx_entries.data()},
                         nullptr);
  return r;
}

struct Want {
  std::vector<int32_t> order;
  Oracle out, dx, dgate, dup, ddown, dweights;
};

void add(Oracle& oracle, int64_t at, double term) {
  oracle.value[at] += term;
  oracle.scale[at] += std::abs(term);
}

/// An error of gated or upped is passed on whatever the size of the terms: the smallest scale is
/// the tensor's mean.
void raise_scales(Oracle& oracle) {
  const double sum = std::accumulate(oracle.scale.begin(), oracle.scale.end(), 0.0);
  for (double& scale : oracle.scale) scale = std::max(scale, sum / oracle.scale.size());
}

/// Adds what entry `i` of the tokens contributes.
template <typename T>
void add_entry(const Inputs<T>& in, int64_t i, Want& want) {
  const Shape& s = in.shape;
  const int64_t e = in.chosen[i], token = i / s.k, matrix = e * s.width * s.hidden;
  const double weight = in.weights[i];
  for (int64_t j = 0; j < s.width; ++j) {
    double gated = 0, upped = 0, dinner = 0;
    for (int64_t h = 0; h < s.hidden; ++h) {
      const double x = to_float(in.x[token * s.hidden + h]);
      gated += x * to_float(in.gate[matrix + j * s.hidden + h]);
      upped += x * to_float(in.up[matrix + j * s.hidden + h]);
      dinner += static_cast<double>(to_float(in.dout[token * s.hidden + h])) *
                to_float(in.down[matrix + h * s.width + j]);
    }
    const double score = 1 / (1 + std::exp(-gated)), inner = gated * score * upped;
    const double dgated = weight * dinner * upped * score * (1 + gated * (1 - score));
    const double dupped = weight * dinner * gated * score;
    add(want.dweights, i, dinner * inner);
    for (int64_t h = 0; h < s.hidden; ++h) {
      const int64_t at = token * s.hidden + h, in_width = matrix + j * s.hidden + h;
      const int64_t in_hidden = matrix + h * s.width + j;
      add(want.out, at, weight * inner * to_float(in.down[in_hidden]));
      add(want.dx, at, dgated * to_float(in.gate[in_width]));
      add(want.dx, at, dupped * to_float(in.up[in_width]));
      add(want.dgate, in_width, dgated * to_float(in.x[at]));
      add(want.dup, in_width, dupped * to_float(in.x[at]));
      add(want.ddown, in_hidden, weight * inner * to_float(in.dout[at]));
    }
  }
}

template <typename T>
Want oracle(const Inputs<T>& in) {
  const Shape& s = in.shape;
  const int64_t matrix = s.experts * s.width * s.hidden, rows = s.tokens * s.hidden;
  Want want{.order = {},
            .out = Oracle(rows, true),
            .dx = Oracle(rows, true),
            .dgate = Oracle(matrix, true),
            .dup = Oracle(matrix, true),
            .ddown = Oracle(matrix, true),
            .dweights = Oracle(s.tokens * s.k, true)};
  for (int64_t e = 0; e < s.experts; ++e) {
    for (int64_t i = 0; i < s.tokens * s.k; ++i) {
      if (in.chosen[i] == e) want.order.push_back(static_cast<int32_t>(i));
    }
  }
  for (const int32_t i : want.order) add_entry(in, i, want);
  want.order.resize(s.tokens * s.k, -7);
  for (Oracle* o : {&want.out, &want.dx, &want.dgate, &want.dup, &want.ddown, &want.dweights}) {
    raise_scales(*o);
  }
  return want;
}

template <typename T>
std::string check(const Inputs<T>& in, const Want& want) {
  const Results<T> got = run(in);
  // dweights are float32, but read what was rounded to T.
  const std::string dweights = sizeof(T) == sizeof(bf16) ? "moe.dweights.bf16" : "moe.dweights";
  return first_fault(
      {got.order == want.order ? "" : "other order", beyond_limit("moe.out", got.out, want.out),
       beyond_limit("moe.dx", got.dx, want.dx), beyond_limit("moe.dweight", got.dgate, want.dgate),
       beyond_limit("moe.dweight", got.dup, want.dup),
       beyond_limit("moe.dweight", got.ddown, want.ddown),
       beyond_limit(dweights, got.dweights, want.dweights)});
}

template <typename T>
std::string check_shapes() {
  for (const Shape& shape : kShapes) {
    const Inputs<T> in(shape);
    const Want want = oracle(in);
    const std::string fault = on_every_schedule([&] { return check(in, want); });
    if (!fault.empty()) return std::to_string(shape.hidden) + " hidden: " + fault;
  }
  return "";
}

/// The tokens of a batch in three parts give the bits of the whole batch.
template <typename T>
std::string check_split() {
  const Inputs<T> in({70, 33, 40, 3, 2});
  const Results<T> whole = run(in);
  int64_t start = 0;
  for (const int64_t end : {1, 40, 70}) {
    const Results<T> part = run(in.part(start, end));
    const auto same = [&](const auto& all, const auto& own, int64_t size) {
      return std::equal(own.begin(), own.end(), all.begin() + start * size,
                        [](auto a, auto b) { return std::memcmp(&a, &b, sizeof(a)) == 0; });
    };
    if (!same(whole.out, part.out, 33) || !same(whole.dx, part.dx, 33) ||
        !same(whole.dweights, part.dweights, 2)) {
      return "other bits in a part of the batch";
    }
    start = end;
  }
  return "";
}

/// The order of a token's slots does not matter, nor does the schedule.
template <typename T>
std::string check_bits() {
  const Inputs<T> in({3, 33, 10, 4, 3});
  Inputs<T> flipped = in;
  for (int64_t t = 0; t < 3; ++t) {
    std::reverse(flipped.chosen.begin() + t * 3, flipped.chosen.begin() + (t + 1) * 3);
    std::reverse(flipped.weights.begin() + t * 3, flipped.weights.begin() + (t + 1) * 3);
  }
  simt::set_schedule_seed(0);
  const Results<T> first = run(in);
  return on_every_schedule([&] {
    const Results<T> again = run(flipped);
    const bool same = same_bits(first.out, again.out) && same_bits(first.dx, again.dx) &&
                      same_bits(first.dgate, again.dgate) && same_bits(first.dup, again.dup) &&
                      same_bits(first.ddown, again.ddown);
    return std::string(same ? "" : "other bits");
  });
}

std::string check_all() {
  const std::string fault = check_bits<float>();
  return fault.empty() ? check_shapes<float>() : fault;
}

TEST(MoeKernel, MatchesFloat64InFloat32) { EXPECT_EQ(check_shapes<float>(), ""); }
TEST(MoeKernel, MatchesFloat64InBf16) { EXPECT_EQ(check_shapes<bf16>(), ""); }
TEST(MoeKernel, GivesTheSameBitsOnEveryScheduleAndSlotOrder) {
  EXPECT_EQ(check_bits<float>(), "");
  EXPECT_EQ(check_bits<bf16>(), "");
}
TEST(MoeKernel, GivesTheSameBitsInEveryBatch) {
  EXPECT_EQ(check_split<float>(), "");
  EXPECT_EQ(check_split<bf16>(), "");
}

TEST(MoeKernel, EveryMutantIsFound) {
  expect_found({MoeMutant::unstable_sort, MoeMutant::lost_gather, MoeMutant::swapped_weights,
                MoeMutant::unweighted, MoeMutant::slot_order, MoeMutant::dropped_expert,
                MoeMutant::wrong_slope, MoeMutant::stale_gradient},
               check_all);
  for (const auto check : {check_shapes<float>, check_shapes<bf16>}) {
    expect_found({TileProductMutant::stale_tail, TileProductMutant::missing_barrier,
                  TileProductMutant::dropped_depth},
                 check);
  }
}

}  // namespace
}  // namespace dsv32::suites
