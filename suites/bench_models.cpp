// Time and memory of our implementations on one case, for golden/bench.py: the weights are resident
// before the clock starts, in the dtype of the run, and nothing but the loss is kept. The reference
// computes each layer's forward pass a second time when it makes gradients; the optimized model
// keeps what its backward pass needs.
//
//   bench_models [--case small] [--benchmark_... flags of Google Benchmark]
//   bench_models --case small --peak optimized    resident bytes of one pass in float32, as JSON

#include <benchmark/benchmark.h>
#include <malloc.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/optimized/model/model.h"
#include "src/reference/reference.h"
#include "suites/bench_flags.h"

namespace dsv32::suites {
namespace {

class ResidentWeights : public WeightSource {
 public:
  ResidentWeights(const Case& c, DType dtype) : identity_(SyntheticWeights(c.seed).identity()) {
    const SyntheticWeights synthetic(c.seed, c.bias_offset);
    for (const WeightSpec& spec : weight_specs(c.config))
      tensors_[spec.name] = synthetic.load(spec).cast(dtype);
  }
  HostTensor load(const WeightSpec& spec) const override { return tensors_.at(spec.name); }
  std::string identity() const override { return identity_; }
  int64_t bytes() const {
    int64_t sum = 0;
    for (const auto& [name, tensor] : tensors_) sum += tensor.bytes();
    return sum;
  }

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

/// Everything that can be timed: made once, before the clock starts.
struct Models {
  ResidentWeights weights, rounded;
  std::unique_ptr<Implementation> plain, fast, fast_rounded;

  explicit Models(const Case& c)
      : weights(c, DType::float32),
        rounded(c, DType::bfloat16),
        plain(reference::make_reference(c.config, weights)),
        fast(optimized::make_optimized(c.config, weights, {.checkpointing = false})),
        fast_rounded(optimized::make_optimized(c.config, rounded, {.checkpointing = false})) {}
};

int time_all(const Case& c) {
  const Models models(c);
  const Batch batch = make_batch(c);
  for (const bool backward : {false, true}) {
    for (const DType dtype : {DType::float32, DType::float64})
      add(*models.plain, batch, {dtype, backward});
    add(*models.fast, batch, {DType::float32, backward});
    add(*models.fast_rounded, batch, {DType::bfloat16, backward});
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

// --- memory -------------------------------------------------------------------------------------

/// A line of this process's status, in bytes: VmRSS, or VmHWM, the peak of VmRSS.
int64_t status_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind(field + ":", 0) == 0) return 1024 * std::stoll(line.substr(field.size() + 1));
  throw Error(ExitCode::environment,
              {.where = "/proc/self/status", .what = field, .expected = "a line", .got = "none"});
}

/// What is resident is what is in use; the peak starts from here.
void reset_peak() {
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << 5;
}

/// reference, optimized, or checkpointed: the optimized model that keeps the input of each layer
/// alone.
std::unique_ptr<Implementation> make(const std::string& name, const ModelConfig& config,
                                     const WeightSource& weights) {
  if (name == "reference") return reference::make_reference(config, weights);
  return optimized::make_optimized(config, weights, {.checkpointing = name == "checkpointed"});
}

/// Forward and backward.
void run_once(const std::string& name, const Case& c, const ResidentWeights& weights) {
  RunOptions options;
  options.dtype = DType::float32;
  options.backward = true;
  options.wanted = is_result;
  make(name, c.config, weights)->run(make_batch(c), options);
}

int print_peak(const std::string& name, const Case& c) {
  const Case tiny = io::find_case("tiny");
  run_once(name, tiny, ResidentWeights(tiny, DType::float32));  // brings the code into memory
  const ResidentWeights weights(c, DType::float32);
  reset_peak();
  const int64_t before = status_bytes("VmRSS");
  run_once(name, c, weights);
  std::printf("{\"before\": %lld, \"peak\": %lld, \"weights\": %lld}\n",
              static_cast<long long>(before), static_cast<long long>(status_bytes("VmHWM")),
              static_cast<long long>(weights.bytes()));
  return 0;
}

int run_all(int argc, char** argv) {
  const Case c = io::find_case(take_flag("--case", "small", argc, argv));
  const std::string peak_of = take_flag("--peak", "", argc, argv);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  reference::set_threads(static_cast<int>(std::thread::hardware_concurrency()));
  return peak_of.empty() ? time_all(c) : print_peak(peak_of, c);
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
