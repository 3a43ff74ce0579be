// The layer_norm kernels in the executor, against float64.

#include "src/optimized/kernels/layer_norm.h"

#include "src/optimized/kernels/reduce.h"
#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized;
using namespace optimized::DSV32_BACKEND;

constexpr float kEps = 1e-6f;

struct Shape {
  int64_t rows;
  int64_t width;
  double spread = 3;  // of x around a mean of 2
};

// Around a vector (4 or 8), a warp of them, and a block; rows around the number of partial sums; a
// spread at which eps counts.
const Shape kShapes[] = {{1, 1},   {3, 7},    {2, 8},    {1, 255}, {2, 256},
                         {1, 257}, {1, 4103}, {263, 16}, {265, 9}, {2, 128, 1e-2}};

template <typename T>
struct Inputs {
  Shape shape;
  std::vector<T> x, weight, bias, dy;

  explicit Inputs(const Shape& s)
      : shape(s),
        x(random_values<T>(s.rows * s.width, 1, s.spread, 2)),
        weight(random_values<T>(s.width, 3, 0.5, 1)),
        bias(random_values<T>(s.width, 4)),
        dy(random_values<T>(s.rows * s.width, 5)) {}
};

struct Forward {
  Oracle y, mean, rstd;
};

template <typename T>
Forward forward_oracle(const Inputs<T>& in) {
  const auto [rows, width, spread] = in.shape;
  const auto x = to_double(in.x), weight = to_double(in.weight), bias = to_double(in.bias);
  Forward want{Oracle(rows * width, true), Oracle(rows, true), Oracle(rows, true)};
  for (int64_t r = 0; r < rows; ++r) {
    double mean = 0, size = 0, variance = 0;
    for (int64_t i = 0; i < width; ++i) {
      mean += x[r * width + i] / width;
      size += std::abs(x[r * width + i]) / width;
    }
    for (int64_t i = 0; i < width; ++i) {
      variance += (x[r * width + i] - mean) * (x[r * width + i] - mean) / width;
    }
    const double rstd = 1 / std::sqrt(variance + kEps);
    want.mean.value[r] = mean;
    want.mean.scale[r] = size;
    want.rstd.value[r] = rstd;
    want.rstd.scale[r] = rstd * (1 + size * rstd);
    for (int64_t i = 0; i < width; ++i) {
      const double centred = x[r * width + i] - mean;
      want.y.value[r * width + i] = centred * rstd * weight[i] + bias[i];
      want.y.scale[r * width + i] =
          (std::abs(centred) * (1 + size * rstd) + size) * rstd * std::abs(weight[i]) +
          std::abs(bias[i]);
    }
  }
  return want;
}

template <typename T>
std::string check_forward(const Inputs<T>& in, const Forward& want) {
  const auto [rows, width, spread] = in.shape;
  auto y = unwritten<T>(rows * width);
  auto mean = unwritten<float>(rows), rstd = unwritten<float>(rows);
  launch_layer_norm<T>({.x = in.x.data(),
                        .weight = in.weight.data(),
                        .bias = in.bias.data(),
                        .y = y.data(),
                        .mean = mean.data(),
                        .rstd = rstd.data(),
                        .rows = rows,
                        .width = width,
                        .eps = kEps},
                       nullptr);
  return first_fault({beyond_limit("layer_norm.mean", mean, want.mean),
                      beyond_limit("layer_norm.rstd", rstd, want.rstd),
                      beyond_limit("layer_norm.y", y, want.y)});
}

/// What the forward pass would have kept: any mean and rstd will do.
struct Statistics {
  std::vector<float> mean, rstd;

  explicit Statistics(int64_t rows)
      : mean(random_values<float>(rows, 6, 0.5, 2)),
        rstd(random_values<float>(rows, 7, 0.02, 0.3)) {}
};

struct Backward {
  Oracle dx, dweight, dbias;
};

template <typename T>
Backward backward_oracle(const Inputs<T>& in, const Statistics& kept) {
  const auto [rows, width, spread] = in.shape;
  const auto x = to_double(in.x), weight = to_double(in.weight), dy = to_double(in.dy);
  Backward want{Oracle(rows * width, true), Oracle(width, true), Oracle(width, true)};
  for (int64_t r = 0; r < rows; ++r) {
    const double rstd = kept.rstd[r];
    const auto normed = [&](int64_t i) { return (x[r * width + i] - kept.mean[r]) * rstd; };
    const auto normed_size = [&](int64_t i) {
      return (std::abs(x[r * width + i]) + std::abs(kept.mean[r])) * rstd;
    };
    double slope_mean = 0, slope_size = 0, dot_mean = 0, dot_size = 0;
    for (int64_t i = 0; i < width; ++i) {
      const double own = dy[r * width + i], slope = own * weight[i];
      slope_mean += slope / width;
      slope_size += std::abs(slope) / width;
      dot_mean += slope * normed(i) / width;
      dot_size += std::abs(slope) * normed_size(i) / width;
      want.dweight.value[i] += own * normed(i);
      want.dweight.scale[i] += std::abs(own) * normed_size(i);
      want.dbias.value[i] += own;
      want.dbias.scale[i] += std::abs(own);
    }
    for (int64_t i = 0; i < width; ++i) {
      const double slope = dy[r * width + i] * weight[i];
      want.dx.value[r * width + i] = rstd * (slope - slope_mean - normed(i) * dot_mean);
      want.dx.scale[r * width + i] =
          rstd * (std::abs(slope) + slope_size + normed_size(i) * dot_size);
    }
  }
  return want;
}

template <typename T>
struct Gradients {
  std::vector<T> dx;
  std::vector<float> dweight, dbias;
};

template <typename T>
Gradients<T> run_backward(const Inputs<T>& in, const Statistics& kept) {
  const auto [rows, width, spread] = in.shape;
  Gradients<T> got{unwritten<T>(rows * width), unwritten<float>(width), unwritten<float>(width)};
  auto dweight_partial = unwritten<float>(layer_norm_partials(rows) * width);
  auto dbias_partial = dweight_partial;
  launch_layer_norm_backward<T>({.dy = in.dy.data(),
                                 .x = in.x.data(),
                                 .weight = in.weight.data(),
                                 .mean = kept.mean.data(),
                                 .rstd = kept.rstd.data(),
                                 .dx = got.dx.data(),
                                 .dweight = got.dweight.data(),
                                 .dbias = got.dbias.data(),
                                 .dweight_partial = dweight_partial.data(),
                                 .dbias_partial = dbias_partial.data(),
                                 .rows = rows,
                                 .width = width},
                                nullptr);
  return got;
}

template <typename T>
std::string check_backward(const Inputs<T>& in, const Statistics& kept, const Backward& want) {
  const Gradients<T> got = run_backward(in, kept);
  return first_fault({beyond_limit("layer_norm.dx", got.dx, want.dx),
                      beyond_limit("layer_norm.dweight", got.dweight, want.dweight),
                      beyond_limit("layer_norm.dbias", got.dbias, want.dbias)});
}

template <typename T>
std::string check_shapes() {
  for (const Shape& shape : kShapes) {
    const Inputs<T> in(shape);
    const Statistics kept(shape.rows);
    const Forward forward = forward_oracle(in);
    const Backward backward = backward_oracle(in, kept);
    const std::string fault = on_every_schedule([&] {
      return first_fault({check_forward(in, forward), check_backward(in, kept, backward)});
    });
    if (!fault.empty()) {
      return std::to_string(shape.rows) + " x " + std::to_string(shape.width) + ": " + fault;
    }
  }
  return "";
}

template <typename T>
std::string check_determinism() {
  const Inputs<T> in({300, 33});
  const Statistics kept(in.shape.rows);
  simt::set_schedule_seed(0);
  const Gradients<T> first = run_backward(in, kept);
  return on_every_schedule([&] {
    const Gradients<T> again = run_backward(in, kept);
    const bool same = same_bits(first.dx, again.dx) && same_bits(first.dweight, again.dweight) &&
                      same_bits(first.dbias, again.dbias);
    return std::string(same ? "" : "other bits");
  });
}

std::string check_all() { return first_fault({check_shapes<float>(), check_shapes<bf16>()}); }

TEST(LayerNormKernel, MatchesFloat64InFloat32) { EXPECT_EQ(check_shapes<float>(), ""); }
TEST(LayerNormKernel, MatchesFloat64InBf16) { EXPECT_EQ(check_shapes<bf16>(), ""); }
TEST(LayerNormKernel, GivesTheSameBitsOnEverySchedule) {
  EXPECT_EQ(check_determinism<float>(), "");
  EXPECT_EQ(check_determinism<bf16>(), "");
}

TEST(LayerNormKernel, EveryMutantIsFound) {
  expect_found({LayerNormMutant::wrong_tail, LayerNormMutant::unbiased_variance,
                LayerNormMutant::variance_of_raw, LayerNormMutant::no_bias,
                LayerNormMutant::dropped_partial, LayerNormMutant::stale_sums},
               check_all);
  expect_found({ReduceMutant::missing_barrier}, check_all);
}

}  // namespace
}  // namespace dsv32::suites
