#include "src/training/one_ulp.h"

#include <cmath>
#include <limits>

#include "src/model/philox.h"

namespace dsv32::training {
namespace {

constexpr size_t kBitsPerBlock = 256;

// A zero stays: its neighbours are denormal numbers, which say nothing and cost much.
float moved(float value, bool up) {
  if (value == 0) return value;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return std::nextafter(value, up ? kInfinity : -kInfinity);
}

}  // namespace

HostTensor OneUlpWeights::load(const WeightSpec& spec) const {
  HostTensor start = base_.load(spec);
  if (seed_ == 0 || is_buffer(spec.name)) return start;
  const HostTensor source = start.cast(DType::float32);
  HostTensor result(DType::float32, source.shape());
  const auto from = source.data<float>();
  const auto to = result.data<float>();
  const PhiloxStream stream(seed_, "one_ulp." + spec.name);
  std::array<uint64_t, 4> bits = {};
  for (size_t i = 0; i < from.size(); ++i) {
    const size_t bit = i % kBitsPerBlock;
    if (bit == 0) bits = stream.block(1 + i / kBitsPerBlock);
    to[i] = moved(from[i], ((bits[bit / 64] >> (bit % 64)) & 1) != 0);
  }
  return result;
}

void move_one_ulp(TensorTable& table, uint64_t seed) {
  torch::NoGradGuard no_grad;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const std::string& name : table.names()) {
    const Tensor& value = table.at(name);
    auto generator = torch::make_generator<torch::CPUGeneratorImpl>(seed ^ fnv1a64(name));
    const Tensor bits = torch::randint(0, 2, value.sizes(), generator, torch::kInt8);
    const Tensor moved = torch::nextafter(
        value, torch::where(bits == 1, torch::tensor(kInfinity), torch::tensor(-kInfinity)));
    value.copy_(torch::where(value == 0, value, moved));  // subnormal numbers are slow
  }
}

std::string OneUlpWeights::identity() const {
  return seed_ == 0 ? base_.identity() : base_.identity() + "+ulp:" + std::to_string(seed_);
}

}  // namespace dsv32::training
