// Time of our implementations on one case, for golden/bench.py: the weights are resident before the
// clock starts, and nothing but the loss is kept. The reference computes each layer's forward pass
// a second time when it makes gradients; the optimized model keeps what its backward pass needs.
//
//   bench_models [--case small] [--benchmark_... flags of Google Benchmark]

#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <thread>

#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/optimized/model/model.h"
#include "src/reference/reference.h"

namespace dsv32::suites {
namespace {

class ResidentWeights : public WeightSource {
 public:
  explicit ResidentWeights(const Case& c) : identity_(SyntheticWeights(c.seed).identity()) {
    const SyntheticWeights synthetic(c.seed, c.bias_offset);
    for (const WeightSpec& spec : weight_specs(c.config))
      tensors_[spec.name] = synthetic.load(spec);
  }
  HostTensor load(const WeightSpec& spec) const override { return tensors_.at(spec.name); }
  std::string identity() const override { return identity_; }

 private:
  std::string identity_;
  std::map<std::string, HostTensor> tensors_;
};

/// Gradients are made and dropped.
bool is_result(const std::string& name) { return name == "loss.lm"; }

struct Timed {
  DType dtype;
  bool backward;
};

void run(benchmark::State& state, const Implementation& model, const Batch& batch, Timed timed) {
  const RunOptions options{.dtype = timed.dtype, .backward = timed.backward, .wanted = is_result};
  for (auto _ : state) {
    const Trace trace = model.run(batch, options);
    state.counters["loss"] = trace.find("loss.lm")->at(0);
  }
}

void add(const Implementation& model, const Batch& batch, Timed timed) {
  const std::string pass = timed.backward ? "forward and backward" : "forward";
  const std::string name = model.name() + " " + std::string(to_string(timed.dtype)) + " " + pass;
  benchmark::RegisterBenchmark(
      name.c_str(), [&, timed](benchmark::State& state) { run(state, model, batch, timed); })
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime()
      ->MeasureProcessCPUTime()
      ->Iterations(1);
}

std::string case_name(int& argc, char** argv) {
  if (argc < 3 || std::strcmp(argv[1], "--case") != 0) return "small";
  std::string name = argv[2];
  for (int i = 3; i < argc; ++i) argv[i - 2] = argv[i];
  argc -= 2;
  return name;
}

int run_all(int argc, char** argv) {
  const Case c = io::find_case(case_name(argc, argv));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const ResidentWeights weights(c);
  const Batch batch = make_batch(c);
  reference::set_threads(static_cast<int>(std::thread::hardware_concurrency()));
  const auto plain = reference::make_reference(c.config, weights);
  const auto fast = optimized::make_optimized(c.config, weights, {.checkpointing = false});
  for (const bool backward : {false, true}) {
    for (const DType dtype : {DType::float32, DType::float64})
      add(*plain, batch, {dtype, backward});
    for (const DType dtype : {DType::float32, DType::bfloat16})
      add(*fast, batch, {dtype, backward});
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
