#include "src/optimized/ops/device.h"
#include "src/optimized/ops/linear_cross_entropy.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

/// a b in float32.
at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
#if defined(DSV32_SIMT)
  return at::mm(a.to(at::kFloat), b.to(at::kFloat));
#else
  return a.scalar_type() == at::kFloat ? at::mm(a, b) : at::mm(a, b, at::kFloat);
#endif
}

struct Steps {
  at::ScalarType dtype;
  Stream stream;

  at::Tensor operand(const at::Tensor& x) const { return x; }
  at::Tensor logits(const at::Tensor& x, const at::Tensor& w) const { return product(x, w.t()); }
  void add_dx(const at::Tensor& dlogits, const at::Tensor& w, const at::Tensor& dx) const {
    dx.add_(product(dlogits, w));
  }
  void add_dweight(const at::Tensor& dlogits, const at::Tensor& x,
                   const at::Tensor& dweight) const {
    dweight.add_(product(dlogits.t(), x));
  }
  /// dlogits, rounded to the dtype of the products.
  at::Tensor gradient(const at::Tensor& logits, const CrossEntropyGradientParams<float>& p) const {
    if (dtype == at::kFloat) {
      launch_cross_entropy_gradient(p, stream);
      return logits;
    }
    const at::Tensor dlogits = at::empty_like(logits, logits.options().dtype(dtype));
    launch_cross_entropy_gradient<bf16>({.logits = p.logits,
                                         .labels = p.labels,
                                         .lse = p.lse,
                                         .scale = p.scale,
                                         .dlogits = mutable_pointer<bf16>(dlogits),
                                         .rows = p.rows,
                                         .columns = p.columns,
                                         .first_column = p.first_column},
                                        stream);
    return dlogits;
  }
  void update(const CrossEntropyChunkParams& p) const { launch_cross_entropy_chunk(p, stream); }
  void finish(const CrossEntropyLossParams& p) const { launch_cross_entropy_loss(p, stream); }
};

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& x,
                                                        const at::Tensor& weight,
                                                        const at::Tensor& labels) {
  const DeviceScope device(x);
  return run_linear_cross_entropy(x, weight, labels, Steps{x.scalar_type(), device.stream()});
}

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy_backward(const at::Tensor& dloss,
                                                                 const at::Tensor& x,
                                                                 const at::Tensor& weight,
                                                                 const at::Tensor& labels,
                                                                 const at::Tensor& lse) {
  const DeviceScope device(x);
  return run_linear_cross_entropy_backward(dloss, x, weight, labels, lse,
                                           Steps{x.scalar_type(), device.stream()});
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("linear_cross_entropy", &linear_cross_entropy);
  m.impl("linear_cross_entropy_backward", &linear_cross_entropy_backward);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
