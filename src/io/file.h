#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace dsv32::io {

/// A regular file open for positioned reads. Every read notices a file that changed since it was
/// opened.
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

 private:
  void check_unchanged() const;

  std::filesystem::path path_;
  int fd_ = -1;
  struct stat opened_ = {};
};

/// A file that appears under its name only when complete: `.<name>.tmp.<pid>` beside it, every
/// write checked, fsync, rename, fsync of the directory. Until then an older file of that name
/// stays as it is. Errors are exit 6.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile();  // removes the temporary file unless committed
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(uint64_t offset, const void* data, size_t size);
  void commit();

 private:
  [[noreturn]] void fail(const std::string& action) const;

  std::filesystem::path path_, temporary_;
  int fd_ = -1;
};

/// Throws Error (environment) unless the disk under `directory` has room for `bytes` more.
void require_space(const std::filesystem::path& directory, uint64_t bytes);
/// Makes the directory and its parents; throws Error (environment) when it cannot.
void make_directory(const std::filesystem::path& directory);

}  // namespace dsv32::io
