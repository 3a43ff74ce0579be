#include "harness/training/own_adamw.h"

#include "harness/cases/implementations.h"
#include "src/optimized/model/optimizer.h"

namespace dsv32::harness {

training::AdamWKernels own_adamw(const std::string& impl, DType dtype, training::Bug bug) {
  const bool has_own = impl != "reference" && dtype != DType::float64;
  if (!has_own || bug != training::Bug::none) return {};
  const auto kernels =
      runs_in_executor(impl) ? optimized::Kernels::simt : optimized::Kernels::library;
  return {.grad_norm =
              [kernels](const std::vector<torch::Tensor>& gradients) {
                return optimized::grad_norm(kernels, gradients);
              },
          .update =
              [kernels](const training::AdamWTensors& t, const torch::Tensor& clip_scale,
                        int64_t step, const training::AdamW& a) {
                optimized::adamw_(kernels, t.parameters, t.gradients, t.exp_avg, t.exp_avg_sq,
                                  {.step = step,
                                   .lr = a.lr,
                                   .beta1 = a.beta1,
                                   .beta2 = a.beta2,
                                   .eps = a.eps,
                                   .weight_decay = a.weight_decay},
                                  clip_scale);
              }};
}

}  // namespace dsv32::harness
