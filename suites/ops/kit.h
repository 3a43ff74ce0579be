#pragma once

/// What the op suites share: where an op runs, calls through the dispatcher, comparison with
/// float64.

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "src/bridge/libtorch.h"

namespace dsv32::suites {

/// One implementation of every op.
struct Backend {
  std::string space;  // namespace of the dispatcher
  at::Device device;
};

std::ostream& operator<<(std::ostream& out, const Backend& backend);

/// CPU kernels and CUDA kernels in the executor (ops_backends.cpp), or a device (..._gpu.cpp).
std::vector<Backend> op_backends();

/// Test classes of ops derive from it and are instantiated with DSV32_ON_EVERY_BACKEND.
class OpTest : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override;  // skips where a device is missing

  /// Results of the op, lists one by one; an argument left out in Python is given here as
  /// c10::IValue().
  std::vector<at::Tensor> call(const std::string& op, std::vector<c10::IValue> arguments) const;
  /// The call must throw a c10::Error whose text contains `text`.
  void expect_refused(const std::string& text, const std::string& op,
                      std::vector<c10::IValue> arguments) const;
  /// Seeded normal data on the backend's device.
  at::Tensor random(at::IntArrayRef shape, at::ScalarType dtype, uint64_t seed, double scale = 1,
                    double mean = 0) const;
};

std::string backend_name(const testing::TestParamInfo<Backend>& info);

#define DSV32_ON_EVERY_BACKEND(test_class) \
  INSTANTIATE_TEST_SUITE_P(Backends, test_class, testing::ValuesIn(op_backends()), backend_name)

/// The same values with gaps between the elements of the last axis.
at::Tensor strided(const at::Tensor& x);

/// float64 on the CPU.
at::Tensor wide(const at::Tensor& x);

/// Judges `got` against `want` (float64, on the CPU) by the row of `tensor` in
/// harness/judge/op_limits.cpp. An error is measured against `scale`, or without one against the
/// larger of the element and the root mean square of its row (last axis).
void expect_close(const std::string& tensor, const at::Tensor& got, const at::Tensor& want,
                  const at::Tensor& scale = {});

/// Equal shape, dtype and bits.
void expect_same_bits(const at::Tensor& a, const at::Tensor& b);

/// Calls `run()`, which returns tensors, with one thread and with two, each time under another
/// schedule of the executor, and expects the same bits.
void expect_deterministic(const std::function<std::vector<at::Tensor>()>& run);

}  // namespace dsv32::suites
