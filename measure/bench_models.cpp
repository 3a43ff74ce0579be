// Time and memory of our implementations on one case, for measure/bench.py: the weights are
// resident before the clock starts, in the dtype of the run, and nothing but the loss is kept.
//
//   bench_models [--case small] [--benchmark_... flags of Google Benchmark]
//   bench_models --case small --peak optimized    resident bytes of one pass in float32, as JSON

#include <benchmark/benchmark.h>
#include <malloc.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "measure/bench_flags.h"
#include "src/bridge/runtime.h"
#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/optimized/model/model.h"
#include "src/reference/reference.h"

namespace dsv32::suites {
namespace {

class ResidentWeights : public WeightSource {
 public:
  ResidentWeights(const Case& c, DType dtype) : identity_(SyntheticWeights(c.seed).identity()) {
    const SyntheticWeights synthetic(c);
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

void add(const std::string& who, const Implementation& model, const Batch& batch, Timed timed) {
  const std::string pass = timed.backward ? "forward and backward" : "forward";
  const std::string name = who + " " + std::string(to_string(timed.dtype)) + " " + pass;
  benchmark::RegisterBenchmark(
      name.c_str(), [&, timed](benchmark::State& state) { run(state, model, batch, timed); })
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime()
      ->MeasureProcessCPUTime()
      ->Iterations(1);
}

/// reference; optimized, as users run it: it keeps the input of each layer alone; or kept: it keeps
/// all that the backward pass needs.
std::unique_ptr<Implementation> make(const std::string& who, const ModelConfig& config,
                                     const WeightSource& weights) {
  if (who == "reference") return reference::make_reference(config, weights);
  return optimized::make_optimized(config, weights, {.checkpointing = who != "kept"});
}

struct Timing {
  const char* who;
  DType dtype;
};

constexpr Timing kTimings[] = {{"reference", DType::float32}, {"reference", DType::float64},
                               {"optimized", DType::float32}, {"optimized", DType::bfloat16},
                               {"kept", DType::float32},      {"kept", DType::bfloat16}};

int time_all(const Case& c) {
  const ResidentWeights wide(c, DType::float32), rounded(c, DType::bfloat16);
  const Batch batch = make_batch(c);
  std::vector<std::unique_ptr<Implementation>> models;
  for (const auto& [who, dtype] : kTimings) {
    models.push_back(make(who, c.config, dtype == DType::bfloat16 ? rounded : wide));
    const bool keeps = std::strcmp(who, "kept") == 0;  // nothing in a forward pass alone
    if (!keeps) add(who, *models.back(), batch, {dtype, false});
    add(who, *models.back(), batch, {dtype, true});
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
  set_threads(static_cast<int>(std::thread::hardware_concurrency()));
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
