#include <cmath>
#include <cstdio>

#include "harness/doctor/doctor.h"
#include "harness/job/job_estimate.h"
#include "harness/report/text.h"
#include "src/io/io.h"
#include "src/model/weights.h"

namespace dsv32::harness {
namespace {

constexpr double kGB = 1e9;
constexpr double kRoom = 1.1;  // activations, caches and the allocator, beside the weights
constexpr int64_t kBlock = 128;

/// A group of devices that people have.
struct Devices {
  double count;
  double gb;
};
constexpr Devices kMachines[] = {{8, 80}, {4, 141}, {8, 141}, {16, 80}, {16, 141}};

bool is_quantised(const std::string& name) {
  for (const char* kept : {"embed_tokens", "lm_head", "norm", "mlp.gate.", "weights_proj"})
    if (name.find(kept) != std::string::npos) return false;
  return true;
}

double elements(const Shape& shape) {
  double product = 1;
  for (const int64_t size : shape) product *= static_cast<double>(size);
  return product;
}

double blocks(int64_t size) { return static_cast<double>((size + kBlock - 1) / kBlock); }

std::string gb(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, bytes < kGB ? "%.2f GB" : "%.0f GB", bytes / kGB);
  return text;
}

std::string count(double weights) {
  char text[32];
  std::snprintf(text, sizeof text, weights < kGB ? "%.4gM" : "%.1fe9",
                weights / (weights < kGB ? 1e6 : kGB));
  return text;
}

std::string duration(double seconds) {
  constexpr double kMinute = 60, kHour = 3600, kDay = 86400;
  char text[32];
  const double unit = seconds < 2 * kMinute ? 1
                      : seconds < 2 * kHour ? kMinute
                      : seconds < 2 * kDay  ? kHour
                                            : kDay;
  const char* name = unit == 1 ? "s" : unit == kMinute ? "min" : unit == kHour ? "h" : "days";
  std::snprintf(text, sizeof text, "%.0f %s", std::ceil(seconds / unit), name);
  return text;
}

std::string row(const std::vector<std::string>& cells) {
  constexpr size_t kFirst = 22, kWidth = 13;
  std::string text;
  for (const std::string& cell : cells) text += padded(cell, text.empty() ? kFirst : kWidth);
  return text.substr(0, text.find_last_not_of(' ') + 1) + "\n";
}

std::string machine_row(const std::string& name, double bytes, const Needs& needs) {
  const auto verdict = [&](double needed) {
    return std::string(needed * kRoom <= bytes ? "fits" : needed <= bytes ? "tight" : "no");
  };
  return row({name, gb(bytes), verdict(needs.bf16), verdict(needs.fp8)});
}

}  // namespace

double fp8_bytes(const ModelConfig& config) {
  constexpr double kBf16 = 2, kCode = 1, kScale = 4;
  double bytes = 0;
  for (const WeightSpec& spec : weight_specs(config)) {
    const double n = elements(spec.shape);
    const bool matrix = spec.shape.size() == 2 && is_quantised(spec.name);
    bytes +=
        matrix ? kCode * n + kScale * blocks(spec.shape[0]) * blocks(spec.shape[1]) : kBf16 * n;
  }
  return bytes;
}

Needs needs_of(const std::string& config, const std::string& case_name) {
  const Case c = io::find_case(case_name);
  Needs needs{.config = config};
  for (const WeightSpec& spec : weight_specs(c.config)) needs.weights += elements(spec.shape);
  needs.bf16 = 2 * needs.weights;
  needs.fp8 = fp8_bytes(c.config);
  Job job;
  job.cases = {c};
  const Estimate estimate = estimate_of(job);
  needs.judge = estimate.bytes;
  needs.seconds = expected_seconds(estimate);
  return needs;
}

std::string fits(const Facts& facts, const std::vector<Needs>& all) {
  std::string text =
      row({"what it takes", "weights", "in bf16", "in FP8", "to judge", "about", ""});
  for (const Needs& needs : all) {
    const bool enough = needs.judge <= facts.memory_free;
    text += row({needs.config, count(needs.weights), gb(needs.bf16), gb(needs.fp8), gb(needs.judge),
                 duration(needs.seconds), enough ? "fits here" : "does not fit"});
  }
  const Needs& largest = all.back();
  text += "\n" + row({"who holds " + largest.config, "memory", "bf16", "FP8"});
  for (const Devices& machine : kMachines)
    text += machine_row(number(machine.count) + " x " + number(machine.gb) + " GB",
                        machine.count * machine.gb * kGB, largest);
  double here = 0;
  for (const GpuFacts& device : facts.gpus) here += device.bytes;
  text += machine_row("this machine", here, largest);
  return text +
         "\nweights alone, with a tenth of room; the released folder also holds the MTP layer "
         "(689 GB).\nOffload and streaming need one layer at a time: our own models load "
         "weights tensor by tensor.\n";
}

}  // namespace dsv32::harness
