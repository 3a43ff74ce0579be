// The reference in bf16 and fp8 mode against DeepSeek's own inference demo, op by op on the demo's
// own inputs: the same bits.

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "harness/cases/case_run.h"
#include "src/io/io.h"

namespace dsv32::suites {
namespace {

namespace fs = std::filesystem;

/// Whole traces of one pass.
std::vector<fs::path> demo_traces() {
  std::vector<fs::path> all;
  for (const auto& entry : fs::directory_iterator(io::home() / "golden" / "data" / "demo")) {
    if (entry.path().extension() != ".safetensors") continue;
    const Trace trace = io::read_trace(entry.path());
    const bool narrow = trace.metadata.at("dtype") != "float32";
    if (narrow && trace.sketches.empty() && io::case_of_trace(trace).chunks.empty())
      all.push_back(entry.path());
  }
  std::sort(all.begin(), all.end());
  return all;
}

/// Float32 sums in another order turn a rounding to bfloat16 now and then, and a rotated value that
/// nearly cancels by more than one step.
constexpr double kEqual = 0.999, kCancelled = 2e-4;
/// Of what is stored in float32.
constexpr double kOrderOfSums = 1e-4;

struct Bits {
  int64_t values = 0, equal = 0, beyond_one_ulp = 0;
  double equal_share() const { return static_cast<double>(equal) / static_cast<double>(values); }
};

Bits compare(const HostTensor& demo, const HostTensor& own) {
  Bits bits{.values = demo.numel()};
  for (int64_t i = 0; i < demo.numel(); ++i) {
    const double a = demo.at(i), b = own.at(i);
    if (a == b) {
      ++bits.equal;
    } else if (!(std::fabs(a - b) <=
                 ulp_at(std::max(std::fabs(a), std::fabs(b)), DType::bfloat16))) {
      ++bits.beyond_one_ulp;
    }
  }
  return bits;
}

/// norm(own - demo) / norm(demo) over finite values.
double distance(const HostTensor& demo, const HostTensor& own) {
  double error = 0, size = 0;
  for (int64_t i = 0; i < demo.numel(); ++i) {
    if (!std::isfinite(demo.at(i))) continue;
    error += std::pow(own.at(i) - demo.at(i), 2);
    size += std::pow(demo.at(i), 2);
  }
  return std::sqrt(error / size);
}

void expect_bits(const fs::path& path) {
  const Trace demo = io::read_trace(path);
  const harness::CaseRun run(io::case_of_trace(demo), false);
  const DType mode = parse_dtype(demo.metadata.at("dtype"));
  const bool shipped = path.filename().string().find("bf16-shipped") != std::string::npos;
  const Trace own =
      run.run({.dtype = DType::bfloat16,
               .dialect = in_dtype(find_dialect(shipped ? "off-v32" : "spec-1"), mode),
               .feeding = Feeding::staged,
               .feed = &demo},
              "reference");
  for (const std::string& name : own.names()) {
    const HostTensor* theirs = demo.find(name);
    const TapName tap = *parse_tap(name);
    const bool masked = tap.info.name == "attn.logits";  // free where nobody attends
    if (theirs == nullptr || masked || is_decision(name) || tap.info.kind == TapKind::scalar)
      continue;
    SCOPED_TRACE(path.filename().string() + " " + name);
    const HostTensor& ours = *own.find(name);
    if (ours.dtype() == DType::bfloat16) {
      const Bits bits = compare(*theirs, ours);
      EXPECT_GE(bits.equal_share(), kEqual);
      EXPECT_LE(static_cast<double>(bits.beyond_one_ulp),
                kCancelled * static_cast<double>(bits.values));
    } else {
      EXPECT_LE(distance(*theirs, ours), kOrderOfSums);
    }
  }
}

TEST(DemoBits, TheReferenceHasTheBitsOfTheDemo) {
  const std::vector<fs::path> traces = demo_traces();
  EXPECT_GE(traces.size(), 4U);
  for (const fs::path& path : traces) expect_bits(path);
}

}  // namespace
}  // namespace dsv32::suites
