#pragma once

#include <cstring>
#include <string>

namespace dsv32::suites {

/// Takes `flag VALUE` out of the front of the command line; `value` where it is not there.
inline std::string take_flag(const char* flag, std::string value, int& argc, char** argv) {
  if (argc < 3 || std::strcmp(argv[1], flag) != 0) return value;
  value = argv[2];
  for (int i = 3; i < argc; ++i) argv[i - 2] = argv[i];
  argc -= 2;
  return value;
}

}  // namespace dsv32::suites
