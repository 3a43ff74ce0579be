#include "src/optimized/model/layer.h"

namespace dsv32::optimized {

Normed rms_norm(const Context& ctx, const Stream& stream, const Tensor& weight) {
  // Fed stages read the fed hidden state; else the norm reads the sum before it is rounded.
  if (ctx.staged || !stream.delta.defined()) return rms_norm(ctx, stream.hidden, weight);
  const auto [y, sum, rstd] = ctx.ops.call<std::tuple<Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, double)>("add_rms_norm", stream.x, stream.delta,
                                                            weight, ctx.config.rms_norm_eps);
  return {y, sum, rstd};
}

Normed rms_norm(const Context& ctx, const Tensor& x, const Tensor& weight) {
  const auto [y, rstd] =
      ctx.ops.call<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, double)>(
          "rms_norm", x, weight, ctx.config.rms_norm_eps);
  return {y, x, rstd};
}

Tensor rms_norm_backward(const Context& ctx, const Tensor& dy, const Normed& normed,
                         const Tensor& weight, const Tensor& dsum, const std::string& name,
                         const KeepGradient& keep) {
  const std::optional<Tensor> past = dsum.defined() ? std::optional(dsum) : std::nullopt;
  const auto [dx, dweight] = ctx.ops.call<std::tuple<Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&)>(
      "rms_norm_backward", dy, normed.input, weight, normed.rstd, past);
  keep(name, dweight);
  return dx;
}

}  // namespace dsv32::optimized
