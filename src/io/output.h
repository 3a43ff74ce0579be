#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace dsv32::io {

/// The one way in which this program writes a file. `path` may lead through links; what they lead
/// to is written, never the link.
/// - A regular file, or none yet: `.NAME.tmp.PID` beside it, every write checked, fsync, rename,
///   fsync of the folder. Until then an older file stays as it is; the new one has its mode and
///   owner. (Another hard link of the older file keeps the older content.)
/// - A pipe or a character device is written through, in the order of the offsets.
/// - `-`, `/dev/stdout` and `/dev/fd/N` are that descriptor, whatever it is.
/// Folders, block devices and sockets are refused. Errors are exit 6.
class OutputFile {
 public:
  /// What one kind of place does; output.cpp.
  class Sink;

  /// Removes temporaries that dead runs left of the same name.
  explicit OutputFile(const std::filesystem::path& path);
  ~OutputFile();  // removes the temporary file unless committed
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(uint64_t offset, const void* data, size_t size);
  /// Everything is written and on the disk, not yet under its name.
  void seal();
  /// Sealed and under its name.
  void commit();

 private:
  friend class OutputSet;
  std::unique_ptr<Sink> sink_;
};

/// Files that appear together or not at all: all are complete on the disk before the first takes
/// its name, and when one cannot, the older ones are put back. (A kill between two renames is the
/// one thing that leaves a mixture; each file of it is whole.)
class OutputSet {
 public:
  /// One more file, to be written and sealed; its name is taken by commit(), in this order.
  OutputFile& add(const std::filesystem::path& path);
  void put(const std::filesystem::path& path, const std::string& content);
  void commit();

 private:
  std::vector<std::unique_ptr<OutputFile>> files_;
};

/// Removes from a folder the temporaries of dead runs whose final name is ours.
void remove_dead_temporaries(const std::filesystem::path& folder,
                             const std::function<bool(const std::string&)>& is_ours);

}  // namespace dsv32::io
