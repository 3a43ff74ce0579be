// The rms_norm kernels in the executor, against float64.

#include "src/optimized/kernels/rms_norm.h"

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
  bool residual;  // and dsum in the backward
};

// Around a vector (4 or 8), a warp of them, and a block; rows around the number of partial sums.
const Shape kShapes[] = {{1, 1, false},   {3, 7, true},     {2, 8, false},  {1, 255, false},
                         {2, 256, true},  {1, 257, false},  {2, 264, true}, {1, 4103, true},
                         {1, 4104, true}, {263, 16, false}, {265, 9, true}};

struct Forward {
  Oracle y, sum, rstd;
};

template <typename T>
struct Inputs {
  Shape shape;
  std::vector<T> x, residual, weight, dy, dsum;

  explicit Inputs(const Shape& s)
      : shape(s),
        x(random_values<T>(s.rows * s.width, 1, 3)),
        residual(random_values<T>(s.residual ? s.rows * s.width : 0, 2)),
        weight(random_values<T>(s.width, 3, 0.5, 1)),
        dy(random_values<T>(s.rows * s.width, 4)),
        dsum(random_values<T>(s.residual ? s.rows * s.width : 0, 5)) {}

  double at(const std::vector<T>& values, int64_t row, int64_t column) const {
    return values.empty() ? 0 : to_float(values[row * shape.width + column]);
  }
};

template <typename T>
Forward forward_oracle(const Inputs<T>& in) {
  const auto [rows, width, residual] = in.shape;
  Forward want{Oracle(rows * width), Oracle(residual ? rows * width : 0), Oracle(rows)};
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) {
      const double sum = in.at(in.x, r, i) + in.at(in.residual, r, i);
      if (residual) want.sum.value[r * width + i] = sum;
      squares += sum * sum;
    }
    const double rstd = 1 / std::sqrt(squares / width + kEps);
    want.rstd.value[r] = rstd;
    for (int64_t i = 0; i < width; ++i) {
      const double sum = in.at(in.x, r, i) + in.at(in.residual, r, i);
      want.y.value[r * width + i] = sum * rstd * in.at(in.weight, 0, i);
    }
  }
  return want;
}

template <typename T>
std::string check_forward(const Inputs<T>& in, const Forward& want) {
  const auto [rows, width, residual] = in.shape;
  auto y = unwritten<T>(rows * width), sum = unwritten<T>(residual ? rows * width : 0);
  auto rstd = unwritten<float>(rows);
  launch_rms_norm<T>({.x = in.x.data(),
                      .residual = residual ? in.residual.data() : nullptr,
                      .weight = in.weight.data(),
                      .y = y.data(),
                      .sum = residual ? sum.data() : nullptr,
                      .rstd = rstd.data(),
                      .rows = rows,
                      .width = width,
                      .eps = kEps},
                     nullptr);
  return first_fault({beyond_limit("rms_norm.rstd", rstd, want.rstd),
                      beyond_limit("rms_norm.sum", sum, want.sum),
                      beyond_limit("rms_norm.y", y, want.y)});
}

struct Backward {
  Oracle dx, dweight;
};

template <typename T>
Backward backward_oracle(const Inputs<T>& in, const std::vector<float>& rstd) {
  const auto [rows, width, residual] = in.shape;
  Backward want{Oracle(rows * width, true), Oracle(width, true)};
  for (int64_t r = 0; r < rows; ++r) {
    double mean = 0, size = 0;
    for (int64_t i = 0; i < width; ++i) {
      const double normed = in.at(in.x, r, i) * rstd[r];
      const double term = in.at(in.dy, r, i) * in.at(in.weight, 0, i) * normed / width;
      mean += term;
      size += std::abs(term);
      want.dweight.value[i] += in.at(in.dy, r, i) * normed;
      want.dweight.scale[i] += std::abs(in.at(in.dy, r, i) * normed);
    }
    for (int64_t i = 0; i < width; ++i) {
      const double normed = in.at(in.x, r, i) * rstd[r];
      const double slope = in.at(in.dy, r, i) * in.at(in.weight, 0, i);
      const double past = in.at(in.dsum, r, i);
      want.dx.value[r * width + i] = rstd[r] * (slope - normed * mean) + past;
      want.dx.scale[r * width + i] =
          rstd[r] * (std::abs(slope) + std::abs(normed) * size) + std::abs(past);
    }
  }
  return want;
}

template <typename T>
struct Gradients {
  std::vector<T> dx;
  std::vector<float> dweight;
};

template <typename T>
Gradients<T> run_backward(const Inputs<T>& in, const std::vector<float>& rstd) {
  const auto [rows, width, residual] = in.shape;
  Gradients<T> got{unwritten<T>(rows * width), unwritten<float>(width)};
  if (mutant(RmsNormMutant::atomic_dweight)) got.dweight.assign(width, 0);
  auto partial = unwritten<float>(rms_norm_partials(rows) * width);
  launch_rms_norm_backward<T>({.dy = in.dy.data(),
                               .x = in.x.data(),
                               .weight = in.weight.data(),
                               .rstd = rstd.data(),
                               .dsum = residual ? in.dsum.data() : nullptr,
                               .dx = got.dx.data(),
                               .dweight = got.dweight.data(),
                               .dweight_partial = partial.data(),
                               .rows = rows,
                               .width = width},
                              nullptr);
  return got;
}

std::vector<float> some_rstd(int64_t rows) {
  std::vector<float> rstd = random_values<float>(rows, 6, 0.05, 0.4);
  for (float& value : rstd) value = std::abs(value);
  return rstd;
}

template <typename T>
std::string check_backward(const Inputs<T>& in, const std::vector<float>& rstd,
                           const Backward& want) {
  const Gradients<T> got = run_backward(in, rstd);
  return first_fault({beyond_limit("rms_norm.dx", got.dx, want.dx),
                      beyond_limit("rms_norm.dweight", got.dweight, want.dweight)});
}

template <typename T>
std::string check_shapes() {
  for (const Shape& shape : kShapes) {
    const Inputs<T> in(shape);
    const std::vector<float> rstd = some_rstd(shape.rows);
    const Forward forward = forward_oracle(in);
    const Backward backward = backward_oracle(in, rstd);
    const std::string fault = on_every_schedule([&] {
      return first_fault({check_forward(in, forward), check_backward(in, rstd, backward)});
    });
    if (!fault.empty()) {
      return std::to_string(shape.rows) + " x " + std::to_string(shape.width) + ": " + fault;
    }
  }
  return "";
}

/// The gradients must not depend on the order of blocks and threads.
template <typename T>
std::string check_determinism() {
  const Inputs<T> in({300, 33, true});
  const std::vector<float> rstd = some_rstd(in.shape.rows);
  simt::set_schedule_seed(0);
  const Gradients<T> first = run_backward(in, rstd);
  return on_every_schedule([&] {
    const Gradients<T> again = run_backward(in, rstd);
    const bool same = same_bits(first.dx, again.dx) && same_bits(first.dweight, again.dweight);
    return std::string(same ? "" : "other bits");
  });
}

std::string check_all() {
  return first_fault({check_shapes<float>(), check_shapes<bf16>(), check_determinism<float>(),
                      check_determinism<bf16>()});
}

TEST(RmsNormKernel, MatchesFloat64InFloat32) { EXPECT_EQ(check_shapes<float>(), ""); }
TEST(RmsNormKernel, MatchesFloat64InBf16) { EXPECT_EQ(check_shapes<bf16>(), ""); }
TEST(RmsNormKernel, GivesTheSameBitsOnEverySchedule) {
  EXPECT_EQ(check_determinism<float>(), "");
  EXPECT_EQ(check_determinism<bf16>(), "");
}

TEST(RmsNormKernel, ReadsUnalignedRowsOneByOne) {
  const Inputs<float> aligned({2, 8, false});
  Inputs<float> shifted = aligned;
  std::vector<float> storage(17), y(16), rstd(2);
  std::copy(aligned.x.begin(), aligned.x.end(), storage.begin() + 1);
  launch_rms_norm<float>({.x = storage.data() + 1,
                          .weight = aligned.weight.data(),
                          .y = y.data(),
                          .rstd = rstd.data(),
                          .rows = 2,
                          .width = 8,
                          .eps = kEps},
                         nullptr);
  EXPECT_EQ(beyond_limit("rms_norm.y", y, forward_oracle(aligned).y), "");
}

TEST(RmsNormKernel, EveryMutantIsFound) {
  expect_found(
      {RmsNormMutant::wrong_tail, RmsNormMutant::wrong_scale, RmsNormMutant::rounded_sum,
       RmsNormMutant::dropped_partial, RmsNormMutant::stale_dweight, RmsNormMutant::atomic_dweight},
      check_all);
  expect_found({ReduceMutant::missing_barrier}, check_all);
}

}  // namespace
}  // namespace dsv32::suites
