#include "src/optimized/ops/device.h"
#include "src/optimized/ops/kl.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

using Four = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

/// Launches on the device of `q`.
auto on(const at::Tensor& q) {
  return [&q](const auto& params) {
    const DeviceScope device(q);
    launch_kl(params, device.stream());
  };
}

Four kl_sparse(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& lse,
               const at::Tensor& scores, const at::Tensor& topk, double scale) {
  return run_kl("kl_sparse", {q, kv, lse, scores}, {.tensor = topk, .is_sparse = true}, scale,
                on(q));
}

Four kl_dense(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& lse,
              const at::Tensor& scores, const at::Tensor& mask, int64_t first_query, double scale) {
  const KlKeys keys{.tensor = mask, .is_sparse = false, .first_query = first_query};
  return run_kl("kl_dense", {q, kv, lse, scores}, keys, scale, on(q));
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("kl_sparse", &kl_sparse);
  m.impl("kl_dense", &kl_dense);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
