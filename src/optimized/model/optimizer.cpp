#include "src/optimized/model/optimizer.h"

#include "src/optimized/model/op_call.h"
#include "src/optimized/optimized.h"

namespace dsv32::optimized {

at::Tensor grad_norm(Kernels kernels, at::TensorList gradients) {
  load_ops();
  return OpCaller(kernels).call<at::Tensor(at::TensorList)>("grad_norm", gradients);
}

void adamw_(Kernels kernels, at::TensorList parameters, at::TensorList gradients,
            at::TensorList exp_avg, at::TensorList exp_avg_sq, const AdamwNumbers& n,
            const at::Tensor& clip_scale) {
  load_ops();
  OpCaller(kernels)
      .call<void(at::TensorList, at::TensorList, at::TensorList, at::TensorList, int64_t, double,
                 double, double, double, double, const at::Tensor&)>(
          "adamw_", parameters, gradients, exp_avg, exp_avg_sq, n.step, n.lr, n.beta1, n.beta2,
          n.eps, n.weight_decay, clip_scale);
}

}  // namespace dsv32::optimized
