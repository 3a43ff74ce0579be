#include "src/optimized/ops/fp8_linear.h"

#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "src/optimized/cpu/parallel.h"

namespace dsv32::optimized::cpu {
namespace {

template <typename T>
void quantize_runs(const Fp8QuantRunsParams<T>& p, int64_t begin, int64_t end) {
  const int64_t runs = (p.columns + p.run - 1) / p.run;
  for (int64_t index = begin * runs; index < end * runs; ++index) {
    const int64_t start = index / runs * p.columns, first = index % runs * p.run;
    const int64_t last = std::min(first + p.run, p.columns);
    float highest = kFp8Floor;
    for (int64_t i = first; i < last; ++i)
      highest = std::fmax(highest, std::abs(to_float(p.values[start + i])));
    const float scale = fp8_run_scale(highest, p.powers);
    for (int64_t i = first; i < last; ++i)
      p.codes[start + i] = encode_e4m3(to_float(p.values[start + i]) / scale);
    p.scales[index] = scale;
  }
}

std::tuple<at::Tensor, at::Tensor> fp8_quant_runs(const at::Tensor& x, int64_t run, bool powers) {
  return run_fp8_quant_runs(x, run, powers, [](const auto& p) {
    parallel_for(p.rows, row_grain(p.columns),
                 [&](int64_t begin, int64_t end) { quantize_runs(p, begin, end); });
  });
}

/// Values of codes, float32.
at::Tensor decoded(const at::Tensor& codes) {
  static const at::Tensor table = [] {
    std::array<float, 256> values;
    for (int code = 0; code < 256; ++code) values[code] = decode_e4m3(static_cast<uint8_t>(code));
    return at::tensor(at::ArrayRef<float>(values.data(), values.size()), at::kFloat);
  }();
  return table.index_select(0, codes.flatten().to(at::kInt)).view(codes.sizes());
}

at::Tensor fp8_linear(const at::Tensor& x, const at::Tensor& x_scales, const at::Tensor& w,
                      const at::Tensor& w_scales, int64_t block_rows, int64_t run) {
  const Fp8LinearOperands operands{x, x_scales, w, w_scales, block_rows, run};
  const at::Tensor y = fp8_linear_output(operands);
  if (y.numel() == 0) return y;
  const int64_t inner = w.size(1), outs = w.size(0);
  const at::Tensor rows = decoded(x).view({-1, inner}), weight = decoded(w);
  const at::Tensor row_scales = x_scales.reshape({rows.size(0), -1});
  const at::Tensor out_scales = w_scales.repeat_interleave(block_rows, 0).narrow(0, 0, outs);
  at::Tensor sum = at::zeros({rows.size(0), outs}, rows.options());
  for (int64_t first = 0, r = 0; first < inner; first += run, ++r) {
    const int64_t width = std::min(run, inner - first);
    const at::Tensor part =
        at::linear(rows.narrow(1, first, width), weight.narrow(1, first, width));
    sum += part * (row_scales.narrow(1, r, 1) * out_scales.select(1, r));
  }
  y.copy_(sum.view_as(y));
  return y;
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("fp8_quant_runs", &fp8_quant_runs);
  m.impl("fp8_linear", &fp8_linear);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
