// bench_oracle: what the oracle lives on. Synthetic weights beside a copy of as many values,
// float64 products by torch and by OpenBLAS on the sizes of `small`. One thread; the time is the
// thread's own, so that neighbours cost little. For golden/bench.py.

#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "src/model/errors.h"
#include "src/model/philox.h"
#include "src/model/weights.h"
#include "src/reference/float64_products.h"
#include "src/reference/openblas.h"

namespace dsv32::suites {
namespace {

using torch::Tensor;

// --- weights ------------------------------------------------------------------------------------

const WeightSpec kWeight = {"model.layers.3.mlp.up_proj.weight", {2048, 1024}};

void count_values(benchmark::State& state) {
  state.SetItemsProcessed(state.iterations() * numel(kWeight.shape));
}

/// Philox alone, in the cache.
void weights_blocks(benchmark::State& state) {
  constexpr int64_t kBlocks = 128, kValuesPerBlock = 16;
  std::vector<uint64_t> words(4 * kBlocks);
  for (auto _ : state) {
    for (int64_t i = 0; i < numel(kWeight.shape) / kValuesPerBlock; i += kBlocks)
      philox4x64_blocks({1, 2}, static_cast<uint64_t>(i), kBlocks, words.data());
    benchmark::DoNotOptimize(words.data());
  }
  count_values(state);
}

/// A tensor as models get it, in memory that the system hands out for it.
void weights_made(benchmark::State& state) {
  const SyntheticWeights weights(1);
  for (auto _ : state) benchmark::DoNotOptimize(weights.load(kWeight).raw());
  count_values(state);
}

/// The same tensor out of memory that is there.
void weights_copied(benchmark::State& state) {
  const HostTensor from = SyntheticWeights(1).load(kWeight);
  for (auto _ : state) {
    HostTensor to(from.dtype(), from.shape());
    std::memcpy(to.raw(), from.raw(), static_cast<size_t>(from.bytes()));
    benchmark::DoNotOptimize(to.raw());
  }
  count_values(state);
}

// --- products -----------------------------------------------------------------------------------

/// [batch,rows,depth] times [batch,depth,cols], b stored by columns as a weight and as keys are.
struct Size {
  const char* what;
  int64_t batch, rows, cols, depth;
};

constexpr Size kSizes[] = {{"probe", 1, 512, 512, 512},
                           {"q_b", 1, 1088, 2048, 256},
                           {"expert", 1, 272, 512, 1024},
                           {"attention", 32, 544, 544, 128},
                           {"head", 1, 1088, 10000, 1024}};

Tensor by_torch(const Tensor& a, const Tensor& b) { return torch::matmul(a, b); }

void product(benchmark::State& state, const Size& size,
             Tensor (*multiply)(const Tensor&, const Tensor&)) {
  const torch::NoGradGuard no_grad;
  const Tensor a = torch::rand({size.batch, size.rows, size.depth}, torch::kFloat64);
  const Tensor b = torch::rand({size.batch, size.cols, size.depth}, torch::kFloat64);
  for (auto _ : state) benchmark::DoNotOptimize(multiply(a, b.transpose(-1, -2)).data_ptr());
  state.counters["operations"] =
      benchmark::Counter(2.0 * static_cast<double>(a.numel() * size.cols),
                         benchmark::Counter::kIsIterationInvariantRate);
  state.SetLabel(std::to_string(size.batch) + "x" + std::to_string(size.rows) + "x" +
                 std::to_string(size.cols) + "x" + std::to_string(size.depth));
}

void add_product(const Size& size, const char* library,
                 Tensor (*multiply)(const Tensor&, const Tensor&)) {
  const std::string name = std::string("product ") + size.what + " " + library;
  benchmark::RegisterBenchmark(
      name.c_str(), [&size, multiply](benchmark::State& state) { product(state, size, multiply); });
}

int run_all(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  at::set_num_threads(1);
  benchmark::RegisterBenchmark("weights blocks", weights_blocks);
  benchmark::RegisterBenchmark("weights made", weights_made);
  benchmark::RegisterBenchmark("weights copied", weights_copied);
  for (const Size& size : kSizes) {
    add_product(size, "torch", by_torch);
    if (reference::openblas() != nullptr)
      add_product(size, "openblas", reference::openblas_product);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace dsv32::suites

int main(int argc, char** argv) {
  try {
    return dsv32::suites::run_all(argc, argv);
  } catch (const dsv32::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
}
