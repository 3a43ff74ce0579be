#include "src/io/volume/timing.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "src/io/checkpoint/files.h"
#include "src/io/file.h"
#include "src/io/io.h"
#include "src/io/volume/sizes.h"
#include "src/model/at_once.h"
#include "src/model/errors.h"

namespace dsv32::io {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kWays = 3;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Range {
  const InputFile* file = nullptr;
  uint64_t begin = 0, size = 0;
};

/// Ranges spread evenly over the files, so many that each way gets its share; one way reads what no
/// other does, so that no server's memory helps it.
std::vector<std::vector<Range>> shares(const std::vector<std::unique_ptr<InputFile>>& files,
                                       const TimingLimits& limits) {
  std::vector<Range> all;
  for (const auto& file : files)
    for (uint64_t begin = 0; begin < file->size(); begin += limits.range)
      all.push_back({file.get(), begin, std::min(limits.range, file->size() - begin)});
  const uint64_t wanted = kWays * std::max<uint64_t>(limits.bytes / limits.range, 1);
  const size_t count = std::min<size_t>(all.size(), wanted);
  std::vector<std::vector<Range>> shares(kWays);
  for (size_t i = 0; i < count; ++i) shares[i % kWays].push_back(all[i * all.size() / count]);
  for (auto& share : shares)  // fewer ranges than ways
    if (share.empty() && !all.empty()) share.push_back(all.front());
  return shares;
}

/// Bytes per second of `threads` readers over the ranges, until the time is over; what was read
/// goes to `take`.
double rate_of(const std::vector<Range>& ranges, int threads, const TimingLimits& limits,
               std::atomic<uint64_t>& sampled,
               const std::function<void(size_t, const std::vector<char>&)>& take = {}) {
  for (const Range& range : ranges) range.file->forget(range.begin, range.size);
  const auto start = Clock::now();
  std::atomic<uint64_t> bytes{0};
  at_once(
      ranges.size(),
      [&](size_t i) {
        if (bytes > 0 && Clock::now() - start > limits.time) return;
        const Range& range = ranges[i];
        std::vector<char> buffer(range.size);
        range.file->read(range.begin, buffer.data(), buffer.size());
        bytes += buffer.size();
        if (take) take(i, buffer);
      },
      threads);
  const double seconds = seconds_since(start);
  for (const Range& range : ranges) range.file->forget(range.begin, range.size);
  sampled += bytes;
  return seconds > 0 ? static_cast<double>(bytes) / seconds : 0;
}

/// A file in a folder that goes away with the object.
class Trial {
 public:
  explicit Trial(const fs::path& folder) : path_((folder / ".dsv32-time.XXXXXX").string()) {
    fd_ = ::mkostemp(path_.data(), O_CLOEXEC);
    if (fd_ < 0) fail("temporary file");
  }
  ~Trial() {
    ::close(fd_);
    ::unlink(path_.c_str());
  }
  Trial(const Trial&) = delete;
  Trial& operator=(const Trial&) = delete;

  const std::string& path() const { return path_; }
  void append(const std::vector<char>& bytes) {
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t n = ::write(fd_, bytes.data() + done, bytes.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) fail("write");
      done += static_cast<size_t>(n);
    }
  }
  void settle() const {
    if (::fsync(fd_) != 0) fail("fsync");
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ExitCode::environment, {.where = path_,
                                        .what = what,
                                        .expected = "a folder with room for a sample",
                                        .got = std::strerror(errno)});
  }

  std::string path_;
  int fd_ = -1;
};

/// Writes a sample into the fast folder and reads it back.
void time_copy(const std::vector<Range>& share, const TimingLimits& limits, ReadingTimes& times,
               std::atomic<uint64_t>& sampled) {
  Trial trial(times.fast);
  const auto start = Clock::now();
  double writing = 0;
  uint64_t written = 0;
  for (const Range& range : share) {
    if (written > 0 && Clock::now() - start > limits.time) break;
    std::vector<char> buffer(range.size);
    range.file->read(range.begin, buffer.data(), buffer.size());
    const auto before = Clock::now();
    trial.append(buffer);
    writing += seconds_since(before);
    written += buffer.size();
    range.file->forget(range.begin, range.size);
  }
  const auto before = Clock::now();
  trial.settle();
  writing += seconds_since(before);
  times.write = writing > 0 ? static_cast<double>(written) / writing : 0;
  const InputFile copy(trial.path());
  std::vector<Range> ranges;
  for (uint64_t begin = 0; begin < copy.size(); begin += limits.range)
    ranges.push_back({&copy, begin, std::min(limits.range, copy.size() - begin)});
  times.copy = rate_of(ranges, limits.readers, limits, sampled);
}

std::string rate_text(double rate) { return size_text(rate) + "/s"; }

std::string times_text(double ratio) {
  char text[32];
  std::snprintf(text, sizeof text, ratio < 9.95 ? "%.1f times" : "%.0f times", ratio);
  return text;
}

/// A folder of the same name in `fast`; of another one where that would be `from` itself.
fs::path place_of_copy(const fs::path& from, const fs::path& fast) {
  fs::path whole = fs::absolute(from).lexically_normal();
  if (!whole.has_filename()) whole = whole.parent_path();  // a slash behind it
  const bool same = fs::absolute(fast / whole.filename()).lexically_normal() == whole;
  return fast / (whole.filename().string() + (same ? "-copy" : ""));
}

}  // namespace

double ReadingTimes::copy_seconds() const {
  const double slowest = std::min(parallel, write);
  return slowest > 0 ? static_cast<double>(bytes) / slowest : 0;
}

double ReadingTimes::pays_after() const {
  if (parallel <= 0 || copy <= parallel) return -1;
  const double saved = static_cast<double>(bytes) * (1 / parallel - 1 / copy);
  return copy_seconds() / saved;
}

std::string ReadingTimes::text() const {
  constexpr double kWorth = 1.2;   // below, a difference is noise
  constexpr double kReadings = 8;  // of each layer by a streamed run of both models, at the least
  std::string out = "read " + size_text(static_cast<double>(sampled)) + " of " +
                    size_text(static_cast<double>(bytes)) + ", nothing from memory:\n";
  out += "  one reader      " + rate_text(one_reader) + "\n";
  out += "  " + std::to_string(readers) + " readers       " + rate_text(parallel) + "\n";
  out += "  a copy in " + fast.string() + "  " + rate_text(copy) + " (written at " +
         rate_text(write) + ")\n";
  out += parallel > kWorth * one_reader
             ? "reading in parallel is worth it: " + times_text(parallel / one_reader) +
                   " as fast; --weights does that by itself\n"
             : "one reader already gets what this volume gives\n";
  const double after = pays_after();
  if (copy <= kWorth * parallel)
    return out + "a copy is not worth it: " + fast.string() + " is not faster than " +
           from.string() + "\n";
  const std::string cost = "it takes " + clock_text(copy_seconds()) + " and is read " +
                           times_text(copy / parallel) + " as fast, so it pays from reading " +
                           std::to_string(static_cast<int64_t>(std::floor(after)) + 1) + " on";
  if (room < bytes)
    return out + "a copy does not fit: " + fast.string() + " has room for " +
           size_text(static_cast<double>(room)) + "; " + cost + "\n";
  if (after >= kReadings)
    return out + "a copy is hardly worth it: " + cost + "; a streamed run reads each layer once " +
           "for each of its passes (--dry-run)\n";
  return out + "a copy is worth it for streamed runs, which read each layer once for each of " +
         "their passes (--dry-run): " + cost + "\n  dsv32-verify weights copy " + from.string() +
         " " + place_of_copy(from, fast).string() + "\n";
}

ReadingTimes time_reading(const fs::path& dir, const fs::path& fast, const TimingLimits& limits,
                          const std::function<void(const std::string&)>& progress) {
  std::vector<std::unique_ptr<InputFile>> files;
  ReadingTimes times{.from = dir, .fast = fast, .readers = limits.readers};
  for (const SafetensorsFile& file : open_checkpoint_files(dir).files) {
    files.push_back(std::make_unique<InputFile>(file.path()));
    times.bytes += files.back()->size();
  }
  std::error_code error;
  times.room = fs::space(fast, error).available;
  if (error) times.room = 0;
  const auto say = [&](const char* what) {
    if (progress) progress(what);
  };
  const std::vector<std::vector<Range>> share = shares(files, limits);
  std::atomic<uint64_t> sampled{0};
  say("one reader");
  times.one_reader = rate_of(share[0], 1, limits, sampled);
  say("several readers");
  times.parallel = rate_of(share[1], limits.readers, limits, sampled);
  say("a copy");
  time_copy(share[2], limits, times, sampled);
  times.sampled = sampled;
  return times;
}

}  // namespace dsv32::io
