#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace dsv32::io {

/// A regular file open for positioned reads. Every read notices a file that changed since it was
/// opened. What fails as a volume does that falters is tried again (volume/patience.h); a volume
/// that is gone is an Error (environment).
class InputFile {
 public:
  /// Throws Error (artefact) unless `path` is a readable regular file.
  explicit InputFile(const std::filesystem::path& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  uint64_t size() const { return static_cast<uint64_t>(opened_.st_size); }
  /// Reads exactly `size` bytes at `offset`; the caller stays within size(). Safe to call from
  /// several threads.
  void read(uint64_t offset, void* out, size_t size) const;
  /// Throws Error (artefact) when the file is not the one that was opened.
  void check_unchanged() const;
  /// Forgets what the system keeps of these bytes in memory: the next read goes to the volume.
  void forget(uint64_t offset, uint64_t size) const;
  const std::filesystem::path& path() const { return path_; }
  /// Of its last change, in nanoseconds since 1970.
  int64_t changed_at() const;

 private:
  bool is_same(const struct stat& now) const;
  void reopen() const;

  std::filesystem::path path_;
  int fd_ = -1;
  struct stat opened_ = {};
};

/// Exit 6 unless the disk under `directory` has room for `bytes` more.
void require_space(const std::filesystem::path& directory, uint64_t bytes);

}  // namespace dsv32::io
