#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace dsv32::io {

/// A file of a checkpoint that is copied.
struct SourceFile {
  std::string name;
  uint64_t size = 0;
  int64_t changed_at = 0;  // nanoseconds since 1970
  bool weights = false;    // safetensors
};

/// What is copied, in the order in which files take their names: behind the last one the folder is
/// a checkpoint.
struct SourceFiles {
  std::vector<SourceFile> files;
  std::vector<std::string> left_out;
};
/// The weights of a checkpoint and the small files beside them. Throws Error (artefact) for one
/// that is not sound, and for a link that leads out of the folder.
SourceFiles source_files(const std::filesystem::path& from);

/// Refuses (usage) a folder that is the source or lies in it.
void require_apart(const std::filesystem::path& from, const std::filesystem::path& to);

/// What earlier runs of the same copy have finished: kept in to/.dsv32-copy/copy.json.
class CopyRecord {
 public:
  struct Entry {
    uint64_t size = 0;
    int64_t source_changed_at = 0, changed_at = 0;
    std::string digest;  // of the digests of the blocks
  };
  /// Throws Error (usage) when the folder holds the copy of another source.
  CopyRecord(const std::filesystem::path& to, const std::filesystem::path& from);
  bool is_new() const { return new_; }
  const std::map<std::string, Entry>& entries() const { return entries_; }
  /// The entry that is about this file as it is now; nullptr without.
  const Entry* of(const SourceFile& file) const;
  void put(const std::string& name, const Entry& entry);
  void drop(const std::string& name);

 private:
  void write() const;

  std::filesystem::path path_;
  std::string source_;
  bool new_ = true;
  std::map<std::string, Entry> entries_;
};

/// Where a copy keeps what is not finished: to/.dsv32-copy.
struct CopyFolders {
  explicit CopyFolders(const std::filesystem::path& to);
  std::filesystem::path root, parts, blocks, checked;
};

/// A regular file of this size and time of change.
bool is_file_of(const std::filesystem::path& path, uint64_t size, int64_t changed_at);

}  // namespace dsv32::io
