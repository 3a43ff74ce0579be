#include "harness/job/memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <string>

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

/// A number of bytes alone in a file of the cgroup; 0 without one ("max", or no such file).
double cgroup_bytes(const char* path) {
  double bytes = 0;
  if (std::FILE* file = std::fopen(path, "r")) {
    if (std::fscanf(file, "%lf", &bytes) != 1) bytes = 0;
    std::fclose(file);
  }
  return bytes;
}

/// What `ulimit -v` leaves; 0 without a limit.
double address_space_left() {
  struct rlimit limit = {};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return 0;
  return std::max(1.0,
                  static_cast<double>(limit.rlim_cur) - proc_bytes("/proc/self/status", "VmSize"));
}

}  // namespace

double available_memory_bytes() {
  double least = proc_bytes("/proc/meminfo", "MemAvailable");
  const double limits[] = {cgroup_bytes("/sys/fs/cgroup/memory.max"),
                           cgroup_bytes("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
                           address_space_left()};
  for (const double limit : limits)
    if (limit > 0) least = least > 0 ? std::min(least, limit) : limit;
  return least;
}

void reset_peak_memory() {
  if (std::FILE* file = std::fopen("/proc/self/clear_refs", "w")) {
    std::fputs("5", file);  // 5: VmHWM starts again (proc(5))
    std::fclose(file);
  }
}

double peak_memory_bytes() { return proc_bytes("/proc/self/status", "VmHWM"); }

}  // namespace dsv32::harness
