#include "harness/job/estimate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <thread>
#include <utility>

#include "harness/job/memory.h"
#include "harness/report/text.h"
#include "src/io/io.h"
#include "src/io/scratch.h"
#include "src/model/errors.h"
#include "src/model/trace.h"
#include "src/model/weights.h"

namespace dsv32::harness {
namespace {

// What the engine holds and does, measured on the case `small`; docs/performance.md.
constexpr double kOracleBytes = 8;       // an element of the oracle's trace
constexpr double kOwnBytes = 2 * 4;      // an element of reference and judged trace
constexpr double kPassBytes = 8;         // an element of what one pass in float64 works on
constexpr double kFreedShare = 2;        // times a pass: what it freed waits for its next use
constexpr double kStateTensors = 4;      // of a training: parameter, gradient and two moments
constexpr double kAttentionCopies = 6;   // of one layer's matrix, during its pass
constexpr double kStagedPasses = 4;      // free run; reference, probe and oracle op by op
constexpr double kSharedPasses = 2;      // oracle and probe, end to end
constexpr double kBackwardPasses = 3;    // forward, forward again layer by layer, backward
constexpr double kTrainingPasses = 300;  // a training suite, in forward passes of its case
constexpr double kRate = 35e9;           // FLOP per second and core, all dtypes together
constexpr double kMakingFlops = 350;     // as long as making, rounding and writing one weight takes
constexpr double kWorthSaying = 10;      // seconds
constexpr double kRoom = 4;              // times `small`: what a file may ask for by itself

/// Elements of tensors.
struct Count {
  double all = 0;
  double resting = 0;  // of those that wait on disk where a float64 trace holds them

  void add(double times, double elements) {
    all += times * elements;
    if (kOracleBytes * elements >= static_cast<double>(io::kScratchBytes))
      resting += times * elements;
  }
  void add(double times, const Count& other) {
    all += times * other.all;
    resting += times * other.resting;
  }
};

double elements(const Shape& shape) {
  double product = 1;
  for (const int64_t size : shape) product *= static_cast<double>(size);
  return product;
}

/// The weights of a layer; multiplications are with matrices alone, and of the routed experts with
/// those that are chosen.
struct LayerWork {
  Count weights;
  double products = 0;  // per token
};

LayerWork layer_work(const ModelConfig& config, int64_t layer) {
  ModelConfig small = config;  // no list of a million experts
  small.n_routed_experts = 0;
  LayerWork work;
  for (const WeightSpec& spec : layer_weight_specs(small, layer)) {
    work.weights.add(1, elements(spec.shape));
    if (spec.shape.size() == 2) work.products += elements(spec.shape);
  }
  if (config.is_dense_mlp(layer)) return work;
  constexpr int64_t kMatrices = 3;
  const double expert = elements({kMatrices, config.hidden_size, config.moe_intermediate_size});
  const double router = elements({config.n_routed_experts, config.hidden_size});
  work.weights.add(1, router);
  work.weights.add(1, elements({config.n_routed_experts}));
  work.weights.add(kMatrices * static_cast<double>(config.n_routed_experts), expert / kMatrices);
  work.products += router + expert * static_cast<double>(config.num_experts_per_tok);
  return work;
}

/// Elements of the taps of one layer, or of those outside the layers; the KL's are small beside
/// them.
Count tap_elements(const Case& c, std::optional<int64_t> layer) {
  Count sum;
  for (const TapInfo& info : tap_vocabulary()) {
    if (info.name.starts_with("kl.") || info.name.starts_with("train.") || info.name == "loss.kl")
      continue;
    if (info.per_layer != layer.has_value()) continue;
    const auto shape = tap_shape({std::string(info.name), layer, info}, c.config, c.B, c.S);
    if (shape) sum.add(1, elements(*shape));
  }
  return sum;
}

double flops_seconds(const Estimate& estimate) {
  return estimate.flops / (kRate * machine_cores());
}

double pass_bytes(const Work& work, bool backward) {
  return kPassBytes * (work.layer * (backward ? 2 : 1) + kAttentionCopies * work.attention);
}

std::string rounded(double value, const char* unit) {
  char text[64];
  std::snprintf(text, sizeof text, value < 99.5 ? "%.2g %s" : "%.0f %s", value, unit);  // no 1e+02
  return text;
}

std::string duration(double seconds) {
  constexpr double kMinute = 60, kHour = 3600, kDay = 86400;
  if (seconds < 2 * kMinute) return number(std::round(seconds)) + " s";
  if (seconds < 2 * kHour) return number(std::round(seconds / kMinute)) + " min";
  return seconds < 2 * kDay ? rounded(seconds / kHour, "h") : rounded(seconds / kDay, "days");
}

std::string memory(double bytes) {
  constexpr double kTiB = 1024 * kGiB;
  return bytes < kTiB ? number(bytes / kGiB) + " GiB" : number(bytes / kTiB) + " TiB";
}

/// "672 billion weights": counts of this size are read, not typed.
std::string counted(double count, const char* unit) {
  constexpr std::pair<double, const char*> kWords[] = {
      {1e12, "trillion "}, {1e9, "billion "}, {1e6, "million "}};
  for (const auto& [size, word] : kWords) {
    if (count >= size) return rounded(count / size, word) + unit;
  }
  return rounded(count, unit);
}

std::string described(const Work& work) {
  return counted(work.weights, "weights") + ", " + counted(work.taps, "values in its taps") + ", " +
         rounded(work.flops / 1e12, "TFLOP forward");
}

/// Elements that a trace holds: its taps and, of a backward pass, the weights' gradients.
struct Held {
  Count taps, gradients;
};

Held held_by(const Case& c) {
  const ModelConfig& config = c.config;
  const double layers = static_cast<double>(config.num_hidden_layers);
  const double dense = std::min(static_cast<double>(config.first_k_dense_replace), layers);
  Held held{.taps = tap_elements(c, std::nullopt)};
  constexpr double kEmbeddingAndHead = 2;
  held.gradients.add(kEmbeddingAndHead, elements({config.vocab_size, config.hidden_size}));
  held.gradients.add(1, elements({config.hidden_size}));
  const auto add = [&](double count, int64_t layer) {
    if (count <= 0) return;
    held.gradients.add(count, layer_work(config, layer).weights);
    held.taps.add(count, tap_elements(c, layer));
  };
  add(dense, 0);
  add(layers - dense, config.num_hidden_layers - 1);
  return held;
}

/// The oracle's large tensors wait on disk.
double bytes_of(const Count& held) {
  return (kOracleBytes + kOwnBytes) * held.all - kOracleBytes * held.resting;
}

}  // namespace

double machine_cores() { return std::max(1u, std::thread::hardware_concurrency()); }

Work work_of(const Case& c) {
  const ModelConfig& config = c.config;
  const double tokens = elements({c.B, c.S});
  const double layers = static_cast<double>(config.num_hidden_layers);
  const double dense = std::min(static_cast<double>(config.first_k_dense_replace), layers);
  const double outer = elements({config.vocab_size, config.hidden_size});
  const Held held = held_by(c);
  Work work{.weights = held.gradients.all,
            .layer = 2 * outer,
            .taps = held.taps.all,
            .attention = elements({c.B, config.num_attention_heads, c.S, c.S})};
  const double pairs = elements({c.B, c.S, c.S});
  const double heads = static_cast<double>(config.num_attention_heads) *
                       static_cast<double>(config.qk_head_dim() + config.v_head_dim);
  const double index = elements({config.index_n_heads, config.index_head_dim});
  double products = tokens * outer + layers * pairs * (heads + index);
  const auto add = [&](double count, int64_t layer) {
    if (count <= 0) return;
    const LayerWork one = layer_work(config, layer);
    work.layer = std::max(work.layer, one.weights.all);
    products += count * tokens * one.products;
  };
  add(dense, 0);
  add(layers - dense, config.num_hidden_layers - 1);
  work.flops = 2 * products;
  return work;
}

double judging_bytes(const Case& c, bool backward) {
  const Held held = held_by(c);
  return bytes_of(held.taps) + (backward ? bytes_of(held.gradients) : 0) +
         kFreedShare * pass_bytes(work_of(c), backward);
}

double whole_bytes(const Case& c) {
  const Work work = work_of(c);
  return (kOracleBytes + kOwnBytes) * work.taps + pass_bytes(work, false);
}

Estimate judging_estimate(const Case& c, double judged, bool forward, bool backward) {
  const double passes = (forward ? kStagedPasses * judged : 0) +
                        (kSharedPasses + judged) * (backward ? kBackwardPasses : 1);
  return {.bytes = judging_bytes(c, backward), .flops = passes * work_of(c).flops};
}

Estimate training_estimate(const Case& c) {
  const Work work = work_of(c);
  return {.bytes = (kOracleBytes + kOwnBytes) * (work.taps + kStateTensors * work.weights) +
                   kFreedShare * pass_bytes(work, true),
          .flops = kTrainingPasses * work.flops};
}

Estimate estimate_of_dump(const Case& c, DType dtype, const std::string& mode) {
  const Work work = work_of(c);
  const bool backward = mode != "forward" && mode != "generate";
  const double held = work.taps + (backward ? work.weights : 0);
  const double passes = mode == "train" ? kTrainingPasses : backward ? kBackwardPasses : 1;
  return {.bytes = static_cast<double>(item_size(dtype)) * held + pass_bytes(work, backward),
          .flops = passes * work.flops};
}

Estimate estimate_of_weights(const Case& c, const std::vector<WeightSpec>& only) {
  const Work work = work_of(c);
  double weights = only.empty() ? work.weights : 0;
  for (const WeightSpec& spec : only) weights += elements(spec.shape);
  return {.bytes = kPassBytes * work.layer, .flops = kMakingFlops * weights};
}

double expected_seconds(const Estimate& estimate) {
  return estimate.seconds > 0 ? estimate.seconds : flops_seconds(estimate);
}

std::string described(const Estimate& estimate) {
  return "about " + duration(expected_seconds(estimate)) + " on " + number(machine_cores()) +
         " cores (" + rounded(estimate.flops / 1e12, "TFLOP") + "), up to " +
         memory(estimate.bytes) + " of memory";
}

std::string announcement(const Estimate& estimate) {
  return expected_seconds(estimate) < kWorthSaying ? "" : "estimate: " + described(estimate);
}

void refuse_what_does_not_fit(const Case& c, double bytes, const std::string& how) {
  const double there = available_memory_bytes();
  if (there <= 0 || bytes <= there) return;
  throw Error(ExitCode::environment, {.where = "case " + c.name,
                                      .what = "memory",
                                      .expected = memory(bytes) + " available",
                                      .got = memory(there),
                                      .hint = described(work_of(c)) + "; " + how});
}

void refuse_large_work(const Case& c, const std::string& path) {
  const Work asked = work_of(c), known = work_of(io::find_case("small"));
  const auto within = [](double work, double limit) { return work <= kRoom * limit; };
  if (within(asked.weights, known.weights) && within(asked.taps, known.taps) &&
      within(asked.flops, known.flops))
    return;
  const auto names = io::config_names();
  const bool shipped = c.overrides_json == "{}" &&
                       std::find(names.begin(), names.end(), c.config_name) != names.end();
  throw Error(ExitCode::artefact, {.where = path,
                                   .what = "the work that its case asks for",
                                   .expected = "at most " + number(kRoom) +
                                               " times that of small (" + described(known) + ")",
                                   .got = described(asked),
                                   .hint = "if it is meant, name its config as well: --config " +
                                           (shipped ? c.config_name : "PATH of the config.json")});
}

}  // namespace dsv32::harness
