// Volumes that are slow, falter or go away: reading again, reading ahead.
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <thread>

#include "src/io/file.h"
#include "src/io/sha256.h"
#include "src/io/volume/patience.h"
#include "src/io/volume/read_ahead.h"
#include "src/io/volume/timing.h"
#include "src/model/at_once.h"
#include "suites/kit/io_files.h"

namespace dsv32::suites {
namespace {

using namespace std::chrono_literals;

constexpr io::Patience kHurried{.tries = 4, .pause = 1ms};

std::string bytes_from(size_t size, uint32_t state) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  return bytes;
}

/// A volume in memory that fails at one byte, so many times, in this way.
struct Faltering {
  std::string bytes;
  uint64_t bad_at = 0;
  int failures = 0;
  int error = EIO;
  int calls = 0;

  ssize_t operator()(uint64_t offset, void* out, size_t size) {
    ++calls;
    size_t count = std::min<uint64_t>(size, bytes.size() - offset);
    if (failures > 0 && offset <= bad_at && bad_at < offset + count) {
      count = bad_at - offset;  // what lies before it comes through
      if (count == 0) {
        --failures;
        errno = error;
        return -1;
      }
    }
    std::memcpy(out, bytes.data() + offset, count);
    return static_cast<ssize_t>(count);
  }
};

std::string read_all(Faltering& volume) {
  std::string out(volume.bytes.size(), '\0');
  out.resize(io::read_patiently(std::ref(volume), 0, out.data(), out.size(), "shard", kHurried));
  return out;
}

TEST(FalteringVolume, IsReadAgain) {
  for (const int error : {EIO, EAGAIN, ESTALE, ETIMEDOUT}) {
    Faltering volume{bytes_from(1000, 1), 300, kHurried.tries - 1, error};
    EXPECT_EQ(read_all(volume), volume.bytes) << std::strerror(error);
    EXPECT_EQ(volume.failures, 0);
  }
}

TEST(FalteringVolume, IsGivenUpWithItsPlace) {
  Faltering volume{bytes_from(1000, 1), 300, kHurried.tries, EIO};
  try {
    read_all(volume);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::environment);
    EXPECT_TRUE(has(error.what(), {"shard", "at byte 300", "4 times"})) << error.what();
  }
}

TEST(FalteringVolume, IsNotAskedTwiceWhenItIsGone) {
  Faltering volume{bytes_from(1000, 1), 300, 1, ENOTCONN};
  EXPECT_THROW(read_all(volume), Error);
  EXPECT_EQ(volume.calls, 2);  // what came before, and the failure
  EXPECT_FALSE(io::is_transient(EACCES));
  EXPECT_FALSE(io::is_of_volume(ENOENT));
}

// --- read-ahead ---------------------------------------------------------------------------------

constexpr io::ReadAheadLimits kSmall{.bytes = 40960, .block = 4096, .readers = 3};

/// Bytes that this process has asked the system for.
int64_t bytes_read() {
  std::ifstream file("/proc/self/io");
  std::string word;
  int64_t value = 0;
  file >> word >> value;
  return word == "rchar:" ? value : -1;
}

struct Volume {
  explicit Volume(size_t size) : bytes(bytes_from(size, 7)) {
    put(folder / "a", bytes);
    file = std::make_unique<io::InputFile>(folder / "a");
  }
  io::FileRange part(uint64_t begin, uint64_t end) const { return {file.get(), begin, end}; }
  bool reads(io::ReadAhead& ahead, uint64_t begin, uint64_t end) const {
    std::string out(end - begin, '\0');
    ahead.read(*file, begin, out.data(), out.size());
    return out == bytes.substr(begin, end - begin);
  }

  Folder folder;
  std::string bytes;
  std::unique_ptr<io::InputFile> file;
};

TEST(ReadAhead, GivesTheBytesOfTheFileInAnyOrder) {
  const Volume volume(300'000);
  io::ReadAhead ahead(kSmall);
  EXPECT_TRUE(volume.reads(ahead, 10, 20'000)) << "nothing was expected";
  ahead.expect({volume.part(0, 150'000)}, {volume.part(150'000, 300'000)});
  // In turn, far ahead, behind, again, beyond what was expected, over several blocks.
  for (const auto& [begin, end] : std::vector<std::pair<uint64_t, uint64_t>>{{0, 5000},
                                                                             {5000, 5001},
                                                                             {140'000, 150'000},
                                                                             {5001, 60'000},
                                                                             {0, 299'999},
                                                                             {299'999, 300'000},
                                                                             {4095, 4097},
                                                                             {100'000, 250'000}})
    EXPECT_TRUE(volume.reads(ahead, begin, end)) << begin << " to " << end;
  EXPECT_LE(ahead.peak(), kSmall.bytes);
}

TEST(ReadAhead, ReadsEveryByteOnceAndHoldsLittle) {
  const Volume volume(1 << 20);
  io::ReadAhead ahead(kSmall);
  const int64_t before = bytes_read();
  ahead.expect({volume.part(0, 1 << 20)}, {});
  for (uint64_t at = 0; at < (1 << 20); at += 1000)
    EXPECT_TRUE(volume.reads(ahead, at, std::min<uint64_t>(at + 1000, 1 << 20)));
  const int64_t read = bytes_read() - before;
  EXPECT_GE(read, 1 << 20);
  EXPECT_LT(read, (1 << 20) + 20'000);
  EXPECT_LE(ahead.peak(), kSmall.bytes);
  EXPECT_GE(ahead.peak(), kSmall.bytes / 2) << "it reads ahead";
}

TEST(ReadAhead, KeepsWhatTheNextPassReadsAgain) {
  const Volume volume(30'000);  // fits
  io::ReadAhead ahead(kSmall);
  const int64_t before = bytes_read();
  for (int pass = 0; pass < 5; ++pass) {
    ahead.expect({volume.part(0, 30'000)}, {volume.part(0, 30'000)});
    EXPECT_TRUE(volume.reads(ahead, 0, 30'000));
  }
  EXPECT_LT(bytes_read() - before, 40'000);
}

TEST(ReadAhead, GivesBackWhatItHoldsWhenNothingIsExpected) {
  const Volume volume(30'000);
  io::ReadAhead ahead(kSmall);
  ahead.expect({volume.part(0, 30'000)}, {});
  EXPECT_TRUE(volume.reads(ahead, 0, 30'000));
  ahead.expect({}, {});
  const int64_t before = bytes_read();
  EXPECT_TRUE(volume.reads(ahead, 0, 30'000));
  EXPECT_GE(bytes_read() - before, 30'000);
}

TEST(ReadAhead, HasTheNextOnesWhenTheyAreAskedFor) {
  const Volume volume(32'768);
  io::ReadAhead ahead(kSmall);
  ahead.expect({volume.part(0, 16'384)}, {volume.part(16'384, 32'768)});
  EXPECT_TRUE(volume.reads(ahead, 0, 16'384));
  for (int i = 0; i < 2000 && ahead.peak() < 32'768; ++i) std::this_thread::sleep_for(1ms);
  const int64_t before = bytes_read();
  EXPECT_TRUE(volume.reads(ahead, 16'384, 32'768));
  EXPECT_LT(bytes_read() - before, 4096) << "they were there";
}

TEST(ReadAhead, ServesSeveralThreads) {
  const Volume volume(500'000);
  io::ReadAhead ahead({.bytes = 24'576, .block = 4096, .readers = 2});
  ahead.expect({volume.part(0, 500'000)}, {volume.part(0, 500'000)});
  std::atomic<int> wrong{0};
  const auto read = [&](size_t thread) {
    for (size_t i = 0; i < 100; ++i) {
      const uint64_t begin = (thread * 7919 + i * 4999) % 480'000;
      if (!volume.reads(ahead, begin, begin + 17'000)) ++wrong;
    }
  };
  at_once(kVolumeThreads, read, kVolumeThreads);
  EXPECT_EQ(wrong, 0);
}

TEST(ReadAhead, SaysWhatIsWrongWhereItIsAskedFor) {
  const Volume volume(100'000);
  io::ReadAhead ahead(kSmall);
  fs::resize_file(volume.folder / "a", 50'000);
  ahead.expect({volume.part(0, 100'000)}, {});
  const std::string said = refusal([&] { volume.reads(ahead, 60'000, 70'000); });
  EXPECT_TRUE(has(said, {"a file cut at byte 5"})) << said;
}

TEST(AtOnce, PassesOnTheFirstException) {
  std::atomic<int> done{0};
  at_once(
      100, [&](size_t) { ++done; }, kVolumeThreads);
  EXPECT_EQ(done, 100);
  const auto fail_once = [](size_t i) {
    if (i == 17) throw std::runtime_error("17");
  };
  EXPECT_THROW(at_once(100, fail_once, kVolumeThreads), std::runtime_error);
  EXPECT_THROW(at_once(100, fail_once, 1), std::runtime_error);
}

// --- is a copy worth it? ------------------------------------------------------------------------

constexpr double kMega = 1e6;

io::ReadingTimes times(double one, double parallel, double copy, double write) {
  return {.from = "slow",
          .fast = "fast",
          .bytes = 1'000'000'000,
          .sampled = 1000,
          .one_reader = one * kMega,
          .parallel = parallel * kMega,
          .copy = copy * kMega,
          .write = write * kMega,
          .room = 2'000'000'000,
          .readers = 8};
}

TEST(ReadingTimes, SayWhichWayIsWorthIt) {
  EXPECT_TRUE(has(times(10, 80, 1000, 500).text(),
                  {"reading in parallel is worth it: 8.0 times", "a copy is worth it",
                   "pays from reading 2 on", "weights copy slow fast/slow\n"}));
  EXPECT_TRUE(
      has(times(100, 101, 100, 500).text(), {"one reader already gets", "a copy is not worth it"}));
  EXPECT_TRUE(has(times(100, 100, 200, 10).text(), {"hardly worth it", "from reading 21 on"}));
  io::ReadingTimes full = times(10, 80, 1000, 500);
  full.room = 1000;
  EXPECT_TRUE(has(full.text(), {"does not fit"}));
}

}  // namespace
}  // namespace dsv32::suites
