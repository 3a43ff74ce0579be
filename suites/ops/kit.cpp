#include "suites/ops/kit.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <limits>
#include <utility>

#include "harness/judge/op_limits.h"
#include "src/optimized/optimized.h"

namespace dsv32::suites {

std::vector<at::Tensor> OpTest::call(const std::string& op,
                                     std::vector<c10::IValue> arguments) const {
  optimized::load_ops();
  const std::string name = GetParam().space + "::" + op;
  c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").callBoxed(&arguments);
  std::vector<at::Tensor> results;
  for (const c10::IValue& value : arguments) {
    if (value.isTensor()) {
      results.push_back(value.toTensor());
    } else {
      for (const at::Tensor& tensor : value.toTensorVector()) results.push_back(tensor);
    }
  }
  return results;
}

void OpTest::expect_refused(const std::string& text, const std::string& op,
                            std::vector<c10::IValue> arguments) const {
  try {
    call(op, std::move(arguments));
    ADD_FAILURE() << op << " accepted what it should refuse: " << text;
  } catch (const c10::Error& error) {
    const std::string got = error.what_without_backtrace();
    EXPECT_NE(got.find(text), std::string::npos) << "expected '" << text << "' in: " << got;
  }
}

at::Tensor OpTest::random(at::IntArrayRef shape, at::ScalarType dtype, uint64_t seed, double scale,
                          double mean) const {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const at::Tensor normal = at::empty(shape, at::kDouble).normal_(mean, scale, generator);
  return normal.to(dtype).to(GetParam().device);
}

std::ostream& operator<<(std::ostream& out, const Backend& backend) {
  return out << backend.space << " on " << backend.device;
}

std::string backend_name(const testing::TestParamInfo<Backend>& info) {
  return info.param.space + "_" + c10::DeviceTypeName(info.param.device.type(), true);
}

at::Tensor strided(const at::Tensor& x) {
  const at::Tensor wide = at::stack({x, x + 1}, -1);
  return wide.select(-1, 0);
}

at::Tensor wide(const at::Tensor& x) { return x.detach().to(at::kCPU, at::kDouble); }

void expect_close(const std::string& tensor, const at::Tensor& got, const at::Tensor& want,
                  const at::Tensor& scale) {
  ASSERT_EQ(got.sizes(), want.sizes()) << tensor;
  if (got.numel() == 0) return;
  const bool is_bf16 = got.scalar_type() == at::kBFloat16;
  const double unit = is_bf16 ? 0x1p-8 : 0x1p-24;
  at::Tensor size = scale;
  if (!size.defined()) {
    const at::Tensor rms =
        want.dim() == 0 ? want.abs() : want.square().mean(-1, /*keepdim=*/true).sqrt();
    size = at::maximum(want.abs(), rms);
  }
  // Equal infinities are no error.
  const at::Tensor error = at::where(wide(got) == want, 0.0, (wide(got) - want).abs());
  const at::Tensor units = at::where(error == 0, 0.0, error / (size * unit)).flatten();
  const at::Tensor judged = units.nan_to_num(std::numeric_limits<double>::infinity());
  const int64_t worst = judged.argmax().item<int64_t>();
  EXPECT_LE(judged[worst].item<double>(), harness::op_limit(tensor, is_bf16))
      << tensor << ", element " << worst << " of " << got.sizes() << ": expected "
      << want.flatten()[worst].item<double>() << ", got "
      << wide(got).flatten()[worst].item<double>() << ", in units of the dtype's rounding";
}

void expect_same_bits(const at::Tensor& a, const at::Tensor& b) {
  ASSERT_EQ(a.scalar_type(), b.scalar_type());
  ASSERT_EQ(a.sizes(), b.sizes());
  const auto bits = [](const at::Tensor& t) { return t.cpu().contiguous().view(at::kByte); };
  EXPECT_TRUE(a.numel() == 0 || at::equal(bits(a), bits(b)));
}

void expect_deterministic(const std::function<std::vector<at::Tensor>()>& run) {
  const int threads = at::get_num_threads();
  std::vector<std::vector<at::Tensor>> results;
  for (const int count : {1, 2, 2}) {  // the executor's schedule is another one on every launch
    at::set_num_threads(count);
    results.push_back(run());
  }
  at::set_num_threads(threads);
  for (const auto& other : results) {
    ASSERT_EQ(other.size(), results[0].size());
    for (size_t i = 0; i < other.size(); ++i) expect_same_bits(results[0][i], other[i]);
  }
}

}  // namespace dsv32::suites
