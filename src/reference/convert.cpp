#include "src/reference/convert.h"

#include "src/model/philox.h"

namespace dsv32::reference {

torch::Tensor perturbed(const torch::Tensor& value, double size, uint64_t seed,
                        const std::string& name) {
  auto generator = torch::make_generator<torch::CPUGeneratorImpl>(seed ^ fnv1a64(name));
  const torch::Tensor signs =
      torch::randint(0, 2, value.sizes(), generator, torch::kInt8).to(value.device());
  return torch::where(signs == 1, value * (1 + size), value * (1 - size));
}

}  // namespace dsv32::reference
