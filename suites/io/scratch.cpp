// Tensors that wait on disk.
#include "src/io/scratch.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>

#include "src/model/errors.h"
#include "suites/kit/io_files.h"

namespace dsv32::suites {
namespace {

constexpr int64_t kLarge = io::kScratchBytes / 4;  // float32

/// The resident part of what this process has mapped from files, in bytes.
int64_t resident_file_bytes() {
  int64_t kib = 0;
  if (std::FILE* file = std::fopen("/proc/self/status", "r")) {
    char line[128];
    while (std::fgets(line, sizeof line, file) != nullptr)
      if (std::sscanf(line, "RssFile: %ld kB", &kib) == 1) break;
    std::fclose(file);
  }
  return kib * 1024;
}

TEST(Scratch, KeepsValuesThatTakeNoMemoryWhileTheyRest) {
  io::Scratch scratch;
  HostTensor tensor = scratch.tensor(DType::float32, {2, kLarge});
  EXPECT_EQ(tensor.at(2 * kLarge - 1), 0);
  const auto values = tensor.data<float>();
  std::iota(values.begin(), values.end(), 0.0F);
  const int64_t written = resident_file_bytes();
  scratch.rest();
  EXPECT_LT(resident_file_bytes(), written - tensor.bytes() / 2);
  EXPECT_EQ(tensor.at(kLarge), static_cast<double>(static_cast<float>(kLarge)));
}

TEST(Scratch, OutlivesWhoMadeItAndLeavesSmallTensorsAlone) {
  HostTensor large, small;
  {
    io::Scratch scratch;
    large = scratch.tensor(DType::uint8, {io::kScratchBytes});
    small = scratch.tensor(DType::uint8, {io::kScratchBytes - 1});
    large.raw()[7] = small.raw()[7] = std::byte{3};
    scratch.rest();
  }
  EXPECT_EQ(large.at(7), 3);
  EXPECT_EQ(small.at(7), 3);
}

/// The code of the error that a large tensor meets.
ExitCode refusal() {
  io::Scratch scratch;
  try {
    scratch.tensor(DType::float32, {kLarge});
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::ok;
}

TEST(Scratch, SaysThatThereIsNoRoom) {
  {
    const FileSizeLimit full(1 << 20);
    EXPECT_EQ(refusal(), ExitCode::environment);
  }
  EXPECT_EQ(refusal(), ExitCode::ok);
}

}  // namespace
}  // namespace dsv32::suites
