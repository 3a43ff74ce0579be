#include "src/optimized/model/context.h"
#include "src/optimized/model/weights.h"

namespace dsv32::optimized {

Quantized quantize(const Context& ctx, const Tensor& x, int64_t run) {
  const auto [codes, scales] =
      ctx.ops.call<std::tuple<Tensor, Tensor>(const Tensor&, int64_t, bool)>("fp8_quant_runs", x,
                                                                             run, ctx.fp8->ue8m0());
  return {codes, scales};
}

Tensor values_of(const Tensor& codes) { return codes.view(at::kFloat8_e4m3fn).to(at::kBFloat16); }

Tensor through_fp8(const Context& ctx, const Tensor& x) {
  const int64_t run = ctx.fp8->block_columns;
  const Quantized q = quantize(ctx, x, run);
  const Tensor scales = q.scales.repeat_interleave(run, -1).narrow(-1, 0, x.size(-1));
  return (values_of(q.codes).to(at::kFloat) * scales).to(x.scalar_type());
}

Tensor project(const Context& ctx, const Tensor& x, Weights& weights, const std::string& name) {
  if (!ctx.fp8) return linear(x, weights.get(name));
  const Quantized q = quantize(ctx, x, ctx.fp8->block_columns);
  const Weights::Codes& w = weights.codes(name);
  return ctx.ops
      .call<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, int64_t)>(
          "fp8_linear", q.codes, q.scales, w.codes, w.scales, ctx.fp8->block_rows,
          ctx.fp8->block_columns);
}

}  // namespace dsv32::optimized
