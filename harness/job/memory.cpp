#include "harness/job/memory.h"

#include <cstdio>
#include <string>

#include "src/io/print.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

/// The value of a line "Name:   123 kB" of a file of /proc, in bytes; 0 without one.
double proc_bytes(const char* path, const std::string& name) {
  double bytes = 0;
  if (std::FILE* file = std::fopen(path, "r")) {
    const std::string format = name + ": %ld kB";
    long kib = 0;
    char line[128];
    while (std::fgets(line, sizeof line, file) != nullptr) {
      if (std::sscanf(line, format.c_str(), &kib) == 1) bytes = 1024.0 * static_cast<double>(kib);
    }
    std::fclose(file);
  }
  return bytes;
}

/// Bytes of the largest live tensors of a run: the attention matrix of one layer in float64, a few
/// times over.
double needed_bytes(const Case& c) {
  const double attention = 1.0 * c.B * c.config.num_attention_heads * c.S * c.S;
  const double kept = c.config.num_hidden_layers * 2 * attention;
  return 8 * (6 * attention + kept);
}

}  // namespace

void refuse_what_does_not_fit(const Case& c) {
  const double needed = needed_bytes(c), there = proc_bytes("/proc/meminfo", "MemAvailable");
  if (there <= 0 || needed <= there) return;
  throw Error(ExitCode::environment,
              {.where = "case " + c.name,
               .what = "memory",
               .expected = io::number(needed / kGiB) + " GiB available",
               .got = io::number(there / kGiB) + " GiB",
               .hint = "the attention matrices of this case are held whole in this version"});
}

void reset_peak_memory() {
  if (std::FILE* file = std::fopen("/proc/self/clear_refs", "w")) {
    std::fputs("5", file);  // 5: VmHWM starts again (proc(5))
    std::fclose(file);
  }
}

double peak_memory_bytes() { return proc_bytes("/proc/self/status", "VmHWM"); }

}  // namespace dsv32::harness
