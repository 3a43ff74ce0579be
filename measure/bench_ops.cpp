// Time of every op of the library on the sizes of one case, for measure/bench.py. Taking turns in
// one process: the op's CPU kernel, the ATen ops that give the same, and what the machine can do, a
// matrix product or a copy of as many bytes. Medians over the rounds; no limits here.
//
//   bench_ops [--case small] [--rounds 5] [--benchmark_... flags of Google Benchmark]

#include "measure/bench_ops.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

#include "measure/bench_flags.h"
#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/optimized/optimized.h"

namespace dsv32::suites {

Tensors call_op(const std::string& op, std::vector<c10::IValue> arguments) {
  const c10::IValue first = arguments.front();
  c10::Dispatcher::singleton()
      .findSchemaOrThrow(("dsv32::" + op).c_str(), "")
      .callBoxed(&arguments);
  if (arguments.empty()) arguments.push_back(first);
  Tensors results;
  for (const c10::IValue& value : arguments) {
    if (value.isTensor()) {
      results.push_back(value.toTensor());
    } else {
      for (const Tensor& tensor : value.toTensorVector()) results.push_back(tensor);
    }
  }
  return results;
}

std::function<Tensors()> autograd_of(Forward forward, Tensors leaves, Tensors gradients) {
  struct Graph {
    Tensors leaves, outputs;
  };
  return [=, graph = std::make_shared<Graph>()] {
    const at::AutoGradMode enabled(true);
    if (graph->outputs.empty()) {
      for (const Tensor& leaf : leaves) graph->leaves.push_back(leaf.detach().requires_grad_());
      graph->outputs = forward(graph->leaves);
    }
    return torch::autograd::grad(graph->outputs, graph->leaves, gradients, /*retain_graph=*/true);
  };
}

std::string size_of(const Tensor& tensor) {
  std::string text;
  for (const int64_t size : tensor.sizes()) {
    if (!text.empty()) text += 'x';
    text += std::to_string(size);
  }
  return text;
}

namespace {

constexpr int64_t kProductSize = 2048;  // rows, columns and depth of the machine's matrix product
constexpr double kBurst = 0.02;         // seconds: short calls are timed in bursts of this length
constexpr int64_t kMostCalls = 1000;    // of a burst

/// One side of a comparison: a call, and the seconds that it took, round by round.
class Side {
 public:
  explicit Side(std::function<void()> call) : call_(std::move(call)) {
    if (!call_) return;
    call_();  // allocates, and makes the graph of a backward pass
    const double once = burst(1);
    calls_ = std::clamp<int64_t>(static_cast<int64_t>(kBurst / once), 1, kMostCalls);
  }
  void measure() {
    if (call_) seconds_.push_back(burst(calls_));
  }
  double last() const { return seconds_.back(); }
  /// 0 without a call.
  double median() const {
    if (seconds_.empty()) return 0;
    std::vector<double> sorted = seconds_;
    std::sort(sorted.begin(), sorted.end());
    return (sorted[sorted.size() / 2] + sorted[(sorted.size() - 1) / 2]) / 2;
  }

 private:
  double burst(int64_t calls) const {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < calls; ++i) call_();
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    return passed.count() / static_cast<double>(calls);
  }

  std::function<void()> call_;
  int64_t calls_ = 1;
  std::vector<double> seconds_;
};

/// What the machine does for such work, with random data: ways to do it, of which the fastest
/// counts, and how much of it one call is.
struct Yardstick {
  std::vector<std::function<void()>> calls;
  double amount;  // FLOPs, or bytes
};

/// ATen's matmul; in float32 oneDNN's as well, which may know wider vectors.
Yardstick matrix_product(at::ScalarType dtype) {
  const Tensor a = at::randn({kProductSize, kProductSize}).to(dtype);
  const Tensor b = at::randn({kProductSize, kProductSize}).to(dtype);
  const double size = kProductSize;
  Yardstick stick{{[a, b, c = at::empty_like(a)]() mutable { at::mm_out(c, a, b); }},
                  2 * size * size * size};
  if (dtype == at::kFloat && at::hasMKLDNN()) {
    const Tensor x = a.to_mkldnn(), weight = b.to_mkldnn();
    stick.calls.push_back([x, weight] { at::mkldnn_linear(x, weight); });
  }
  return stick;
}

Yardstick yardstick(const Work& work, at::ScalarType dtype) {
  if (work.flops > 0) return matrix_product(dtype);
  const auto count = static_cast<int64_t>(work.bytes / (2 * sizeof(float))) + 1;
  const Tensor from = at::randn({count}), to = at::empty_like(from);
  return {{[from, to] { to.copy_(from); }}, static_cast<double>(2 * sizeof(float) * count)};
}

/// Norm of the differences over norm of `want`, the largest over the results; -1: none compared.
double difference(const Tensors& got, const Tensors& want) {
  double worst = -1;
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    if (!want[i].defined()) continue;
    const Tensor a = got[i].to(at::kDouble), b = want[i].to(at::kDouble);
    const Tensor apart = at::where(a == b, 0.0, a - b).norm();
    const Tensor size = at::where(b.isinf(), 0.0, b).norm();
    worst = std::max(worst, (apart / size.clamp_min(1)).item<double>());
  }
  return worst;
}

struct Plan {
  OpEntry entry;
  Setting setting;
  int64_t rounds;
  bool composed;  // time the composition too
};

void run(benchmark::State& state, const Plan& plan) {
  const at::NoGradGuard no_autograd;
  at::manual_seed(1);
  const OpCase c = plan.entry.make(plan.setting);
  if (plan.composed) {
    const Tensors got = call_op(plan.entry.op, c.arguments);
    state.counters["difference"] = difference(got, c.composition());
  }
  const Yardstick stick = yardstick(c.work, plan.setting.dtype);
  Side op([&] { call_op(plan.entry.op, c.arguments); });
  Side composition(plan.composed ? [&] { c.composition(); } : std::function<void()>());
  std::vector<Side> machine(stick.calls.begin(), stick.calls.end());
  for (auto _ : state) {
    op.measure();
    composition.measure();
    for (Side& way : machine) way.measure();
    state.SetIterationTime(op.last());
  }
  state.SetLabel(c.size);
  state.counters["op"] = op.median();
  state.counters["aten"] = composition.median();
  state.counters["flops"] = c.work.flops;
  state.counters["bytes"] = c.work.bytes;
  double rate = 0;  // per second
  for (const Side& way : machine) rate = std::max(rate, stick.amount / way.median());
  state.counters["machine"] = rate;
  state.counters["matmul"] = c.work.flops > 0 ? stick.amount / machine[0].median() : 0;
}

void add(const std::string& name, const Plan& plan) {
  benchmark::RegisterBenchmark(name.c_str(), [plan](benchmark::State& state) { run(state, plan); })
      ->Unit(benchmark::kMillisecond)
      ->UseManualTime()
      ->Iterations(plan.rounds);
}

std::vector<OpEntry> all_ops() {
  std::vector<OpEntry> all;
  for (const auto& part : {row_ops(), attention_ops(), expert_ops()})
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

/// Throws Error (internal) for an op of the library without a case.
void expect_every_op(const std::vector<OpEntry>& entries) {
  for (const c10::OperatorName& found : c10::Dispatcher::singleton().getAllOpNames()) {
    const std::string space = "dsv32::";
    if (found.name.rfind(space, 0) != 0) continue;
    const std::string op = found.name.substr(space.size());
    if (std::none_of(entries.begin(), entries.end(), [&](auto& e) { return e.op == op; }))
      throw Error(
          ExitCode::internal,
          {.where = "bench_ops", .what = "case", .expected = "one of " + op, .got = "none"});
  }
}

/// "ops rms_norm float32": the case's own B and S.
void add_ops(const Case& c, int64_t rounds) {
  const std::vector<OpEntry> all = all_ops();
  expect_every_op(all);
  for (const OpEntry& entry : all) {
    for (const at::ScalarType dtype : entry.dtypes) {
      const std::string name = "ops " + entry.op + entry.variant;
      add(name + (dtype == at::kFloat ? " float32" : " bfloat16"),
          {entry, {c.config, c.B, c.S, dtype}, rounds, /*composed=*/true});
    }
  }
}

/// "growth sparse_mla 1024": one row of 4, 8 and 16 times index_topk tokens, float32.
void add_growth(const Case& c, int64_t rounds) {
  const std::vector<OpEntry> all = all_ops();
  for (const std::string& op : growing_ops()) {
    const auto entry = std::find_if(all.begin(), all.end(), [&](auto& e) { return e.op == op; });
    for (const int64_t times : {4, 8, 16}) {
      const int64_t S = times * c.config.index_topk;
      add("growth " + op + " " + std::to_string(S),
          {*entry, {c.config, 1, S, at::kFloat}, rounds, /*composed=*/false});
    }
  }
}

int run_all(int argc, char** argv) {
  const Case c = io::find_case(take_flag("--case", "small", argc, argv));
  const int64_t rounds = std::max(std::atoi(take_flag("--rounds", "5", argc, argv).c_str()), 1);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  optimized::load_ops();
  at::set_num_threads(static_cast<int>(std::thread::hardware_concurrency()));
  add_ops(c, rounds);
  add_growth(c, rounds);
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
