#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "src/io/file.h"

namespace dsv32::io {

/// A part of an open file.
struct FileRange {
  const InputFile* file = nullptr;
  uint64_t begin = 0, end = 0;
};

/// What a checkpoint's read-ahead holds at most.
inline constexpr uint64_t kReadAheadBytes = uint64_t{512} << 20;

/// What a read-ahead may take.
struct ReadAheadLimits {
  uint64_t bytes = kReadAheadBytes;    // held and in flight, all together
  uint64_t block = uint64_t{4} << 20;  // of one read
  int readers = 8;                     // threads: what hides the latency of a volume
};

/// Reads files before their bytes are asked for: several threads fetch blocks in the order in which
/// they will be needed, as far ahead as memory allows. Bytes are those of the file; an error of a
/// block is thrown where the block is asked for.
class ReadAhead {
 public:
  explicit ReadAhead(const ReadAheadLimits& limits = {});
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  /// From now on `now` will be read, about in this order, and then `then`; what else was expected
  /// is not any more. Nothing expected: what is held is given back. The files outlive this object.
  void expect(const std::vector<FileRange>& now, const std::vector<FileRange>& then);
  /// As InputFile::read. Bytes that nobody expected are read as they are asked for. Safe to call
  /// from several threads.
  void read(const InputFile& file, uint64_t offset, void* out, size_t size);
  /// The most bytes that were held at once.
  uint64_t peak() const;

 private:
  using Key = std::pair<const InputFile*, uint64_t>;  // file, number of the block
  struct Block {
    std::unique_ptr<std::byte[]> bytes;  // null while it is in flight
    std::exception_ptr error;
    bool ready() const { return bytes != nullptr || error != nullptr; }
  };
  /// One expected block: in turn, which bytes of it are wanted last.
  struct Step {
    Key key;
    uint64_t last = 0;
    bool done = false;
  };
  struct Plan {
    std::vector<Step> steps;
    std::map<Key, size_t> at;
  };

  Plan planned(const std::vector<FileRange>& ranges) const;
  void fetch();
  std::optional<Key> next_key();
  size_t distance(const Key& key) const;
  bool make_room(size_t distance);
  std::unique_ptr<std::byte[]> room();
  void copy_from(const Key& key, uint64_t offset, void* out, size_t size, uint64_t end);
  const std::byte* arrived(const Key& key, uint64_t end, std::unique_lock<std::mutex>& lock);
  void want(const Key& key, uint64_t end);
  void passed(const Key& key, uint64_t end);

  const ReadAheadLimits limits_;
  const size_t most_blocks_;
  mutable std::mutex mutex_;
  std::condition_variable work_, arrived_;
  Plan now_, then_;
  size_t low_ = 0, front_ = 0;  // the first step that is not done, the last one that is
  std::deque<Key> wanted_;      // asked for, and not there
  std::map<Key, Block> blocks_;
  std::vector<std::unique_ptr<std::byte[]>> spare_;
  std::map<Key, int> pins_;  // reads that wait for a block or copy out of it
  size_t peak_blocks_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace dsv32::io
