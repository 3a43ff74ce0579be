#include "harness/training/layer_step.h"

#include "harness/training/own_adamw.h"
#include "src/bridge/bridge.h"
#include "src/training/optimizer.h"

namespace dsv32::harness {
namespace {

HostTensor stepped(const std::string& impl, const std::string& weight, const HostTensor& parameter,
                   const HostTensor& gradient, training::Bug bug) {
  training::TensorTable parameters, gradients;
  parameters.put(weight, to_torch(parameter).clone());
  gradients.put(weight, to_torch(gradient).to(torch::kFloat32));
  const auto optimizer = training::make_adamw({{.name = "all"}}, parameters, bug,
                                              own_adamw(impl, DType::float32, bug));
  optimizer->step(parameters, gradients);
  return to_host(parameters.at(weight), DType::float32);
}

}  // namespace

LayerStep adamw_step(training::Bug bug) {
  const training::AdamW adamw;
  return {.numbers = {.lr = adamw.lr,
                      .beta1 = adamw.beta1,
                      .beta2 = adamw.beta2,
                      .eps = adamw.eps,
                      .weight_decay = adamw.weight_decay},
          .run = [bug](const std::string& impl, const std::string& weight,
                       const HostTensor& parameter, const HostTensor& gradient) {
            return stepped(impl, weight, parameter, gradient, bug);
          }};
}

}  // namespace dsv32::harness
