#include "src/io/volume/sizes.h"

#include <cstdio>

namespace dsv32::io {

std::string size_text(double bytes) {
  constexpr double kStep = 1024;
  char text[48];
  if (bytes < kStep) {
    std::snprintf(text, sizeof text, "%.0f bytes", bytes);
    return text;
  }
  const char* unit = "";
  for (const char* next : {"KiB", "MiB", "GiB"}) {
    if (bytes < kStep) break;
    bytes /= kStep, unit = next;
  }
  std::snprintf(text, sizeof text, "%.1f %s", bytes, unit);
  return text;
}

std::string clock_text(double seconds) {
  const auto whole = static_cast<long long>(seconds + 0.5);
  const long long hours = whole / 3600, minutes = whole / 60 % 60, rest = whole % 60;
  char text[48];
  if (hours > 0) {
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", hours, minutes, rest);
  } else {
    std::snprintf(text, sizeof text, "%lld:%02lld", minutes, rest);
  }
  return text;
}

}  // namespace dsv32::io
