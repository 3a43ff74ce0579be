#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace dsv32::io {

/// SHA-256, raw.
using Digest = std::array<uint8_t, 32>;

/// Which bytes are copied, and in which blocks.
struct PartOf {
  uint64_t size = 0;
  int64_t changed_at = 0;  // of the source, nanoseconds since 1970
  uint64_t block = 0;
};

/// A copy of a file that grows block by block in any order, beside a list of the digests of the
/// blocks that are there. What a killed run left is gone on with as long as the source is the same;
/// a block whose line is there and whose bytes are not is found by `is_right`. Blocks may be put
/// and read from several threads, each block from one. Errors are of the environment.
class PartFile {
 public:
  /// `file`: the bytes; `list`: the digests. Room for all of the file is taken at once.
  PartFile(const std::filesystem::path& file, const std::filesystem::path& list, const PartOf& of);
  ~PartFile();
  PartFile(const PartFile&) = delete;
  PartFile& operator=(const PartFile&) = delete;

  size_t blocks() const { return digests_.size(); }
  uint64_t begin(size_t block) const { return block * of_.block; }
  size_t size(size_t block) const;
  bool has(size_t block) const { return digests_[block].has_value(); }
  /// Writes a block, then its digest into the list.
  void put(size_t block, std::span<const std::byte> bytes, const Digest& digest);
  /// Brings everything to the disk and out of memory, so that is_right reads what the disk holds.
  void settle();
  /// Reads a block back into `buffer`: are its bytes those of its digest?
  bool is_right(size_t block, std::span<std::byte> buffer) const;
  /// A block that is to be put again.
  void forget(size_t block) { digests_[block].reset(); }
  /// Of the digests of all blocks, in lower-case hex.
  std::string digest() const;
  /// Of the last change of the copy, in nanoseconds since 1970.
  int64_t changed_at() const;

 private:
  void read_list(const std::filesystem::path& list);
  [[noreturn]] void fail(const std::string& what) const;

  std::filesystem::path path_;
  PartOf of_;
  int file_ = -1, list_ = -1;
  std::vector<std::optional<Digest>> digests_;
};

}  // namespace dsv32::io
