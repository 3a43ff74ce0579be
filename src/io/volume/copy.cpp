#include "src/io/volume/copy.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <set>

#include "src/io/checkpoint/files.h"
#include "src/io/file.h"
#include "src/io/io.h"
#include "src/io/text.h"
#include "src/io/volume/copy_files.h"
#include "src/io/volume/copy_work.h"
#include "src/io/volume/sizes.h"

namespace dsv32::io {
namespace {

/// One copy at a time into a folder.
class Lock {
 public:
  explicit Lock(const fs::path& folder) {
    const fs::path path = folder / "lock";
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd_ >= 0 && ::flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
    const int error = errno;
    if (fd_ >= 0) ::close(fd_);
    throw Error(ExitCode::environment,
                {.where = path.string(),
                 .what = "lock",
                 .expected = "a folder that no other copy writes into",
                 .got = error == EWOULDBLOCK ? "another dsv32-verify weights copy at work"
                                             : std::strerror(error)});
  }
  ~Lock() { ::close(fd_); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  int fd_ = -1;
};

void move(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) == 0) return;
  throw Error(ExitCode::environment, {.where = to.string(),
                                      .what = "rename",
                                      .expected = "a name that can be taken",
                                      .got = std::strerror(errno)});
}

void keep_folder(const fs::path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

uint64_t bytes_on_disk(const fs::path& path) {
  constexpr uint64_t kUnit = 512;  // of st_blocks
  struct stat now = {};
  return ::lstat(path.c_str(), &now) == 0 ? static_cast<uint64_t>(now.st_blocks) * kUnit : 0;
}

/// One copy from plan to end.
class Copy {
 public:
  Copy(const fs::path& from, const fs::path& to, const CopyOptions& options)
      : from_(from), to_(to), options_(options), folders_(to) {
    require_apart(from, to);
    source_ = source_files(from);
    make_directory(to);
    if (!fs::exists(folders_.root)) refuse_strangers();
    for (const fs::path& folder : {folders_.parts, folders_.blocks, folders_.checked})
      make_directory(folder);
    lock_ = std::make_unique<Lock>(folders_.root);
    record_ = std::make_unique<CopyRecord>(to, from);
    refuse_strangers();
  }

  CopyReport run() {
    CopyReport report{.left_out = source_.left_out};
    for (const SourceFile& file : source_.files) report.files += 1, report.bytes += file.size;
    const std::vector<SourceFile> missing = sort_out();
    if (!missing.empty()) {
      refuse_lack_of_room(missing);
      CopyWork work(from_, folders_, options_,
                    {.files = missing, .bytes = report.bytes, .there = bytes_there(missing)},
                    [this](const SourceFile& file, const std::string& digest, int64_t changed_at) {
                      finish(file, digest, changed_at);
                    });
      work.run();
      report.copied = work.copied(), report.repaired = work.repaired();
      report.copying_seconds = work.copying_seconds(), report.seconds = work.seconds();
    }
    give_names();
    return report;
  }

 private:
  /// Files that this copy would replace and did not make.
  void refuse_strangers() const {
    for (const SourceFile& file : source_.files) {
      const bool ours = record_ != nullptr && record_->entries().contains(file.name);
      struct stat there = {};
      if (::lstat((to_ / file.name).c_str(), &there) != 0) continue;
      if (ours && S_ISREG(there.st_mode)) continue;
      throw Error(ExitCode::usage, {.where = to_.string(),
                                    .what = "folder of the copy",
                                    .expected = "an empty folder, or what weights copy made",
                                    .got = printable(file.name) + " of other origin"});
    }
  }

  bool is_named(const SourceFile& file, const CopyRecord::Entry& entry) const {
    return is_file_of(to_ / file.name, entry.size, entry.changed_at);
  }
  bool is_checked(const SourceFile& file, const CopyRecord::Entry& entry) const {
    return is_file_of(folders_.checked / file.name, entry.size, entry.changed_at);
  }

  /// The files that are to be copied or looked through. Where there are any, the folder is no
  /// checkpoint until they are right; a file that has changed under its name becomes a part again.
  std::vector<SourceFile> sort_out() {
    std::vector<SourceFile> missing;
    for (const SourceFile& file : source_.files) {
      const CopyRecord::Entry* entry = record_->of(file);
      if (entry != nullptr && (is_named(file, *entry) || is_checked(file, *entry))) continue;
      missing.push_back(file);
    }
    if (missing.empty()) return missing;
    const SourceFile& gate = source_.files.back();
    if (fs::exists(to_ / gate.name)) move(to_ / gate.name, folders_.checked / gate.name);
    for (const SourceFile& file : missing) {
      const bool same_source = record_->of(file) != nullptr;
      for (const fs::path& folder : {folders_.checked, to_}) {
        if (!fs::exists(folder / file.name)) continue;
        if (same_source) move(folder / file.name, folders_.parts / file.name);
      }
    }
    return missing;
  }

  uint64_t bytes_there(const std::vector<SourceFile>& missing) const {
    uint64_t there = 0;
    std::set<std::string> names;
    for (const SourceFile& file : missing) names.insert(file.name);
    for (const SourceFile& file : source_.files)
      if (!names.contains(file.name)) there += file.size;
    return there;
  }

  void refuse_lack_of_room(const std::vector<SourceFile>& missing) const {
    uint64_t needed = 0;
    for (const SourceFile& file : missing) {
      const uint64_t taken = bytes_on_disk(folders_.parts / file.name);
      needed += file.size - std::min(file.size, taken);
    }
    require_space(to_, needed);
  }

  /// A file is complete and right. The record first: a name in `checked` always has its entry.
  void finish(const SourceFile& file, const std::string& digest, int64_t changed_at) {
    if (file.weights) SafetensorsFile(folders_.parts / file.name);  // its structure
    record_->put(file.name, {.size = file.size,
                             .source_changed_at = file.changed_at,
                             .changed_at = changed_at,
                             .digest = digest});
    move(folders_.parts / file.name, folders_.checked / file.name);
  }

  void give_names() {
    for (const SourceFile& file : source_.files)
      if (fs::exists(folders_.checked / file.name))
        move(folders_.checked / file.name, to_ / file.name);
    keep_folder(to_);
    remove_superfluous();
    open_checkpoint_files(to_);
  }

  /// What earlier runs copied and the source has no more.
  void remove_superfluous() {
    std::set<std::string> names;
    for (const SourceFile& file : source_.files) names.insert(file.name);
    const std::map<std::string, CopyRecord::Entry> entries = record_->entries();
    for (const auto& [name, entry] : entries) {
      if (names.contains(name)) continue;
      if (is_file_of(to_ / name, entry.size, entry.changed_at)) fs::remove(to_ / name);
      fs::remove(folders_.checked / name);
      record_->drop(name);
    }
    for (const fs::path& folder : {folders_.parts, folders_.blocks})
      for (const auto& entry : fs::directory_iterator(folder))
        if (!names.contains(entry.path().filename().string())) fs::remove(entry.path());
  }

  fs::path from_, to_;
  const CopyOptions& options_;
  CopyFolders folders_;
  SourceFiles source_;
  std::unique_ptr<Lock> lock_;
  std::unique_ptr<CopyRecord> record_;
};

std::string sized(uint64_t bytes) { return size_text(static_cast<double>(bytes)); }

}  // namespace

std::string CopyReport::text() const {
  const std::string all = std::to_string(files) + " files, " + sized(bytes);
  std::string out;
  if (copied == 0 && seconds == 0) {
    out = "nothing to copy: " + all + ", are there, copied and checked by an earlier run\n";
  } else {
    out = all + ": read back, every block as it was read\n";
    if (copied > 0)
      out += "copied " + sized(copied) + " in " + clock_text(copying_seconds) + ", " +
             size_text(static_cast<double>(copied) / copying_seconds) + "/s; ";
    out += "all read back by " + clock_text(seconds);
    out += copied < bytes ? "; " + sized(bytes - copied) + " were there\n" : "\n";
  }
  if (repaired > 0)
    out += std::to_string(repaired) +
           " blocks were not as they had been written, and were copied "
           "again: is that disk sound?\n";
  if (!left_out.empty()) out += "left out, no part of the checkpoint: " + listed(left_out) + "\n";
  return out;
}

CopyReport copy_checkpoint(const fs::path& from, const fs::path& to, const CopyOptions& options) {
  return Copy(from, to, options).run();
}

}  // namespace dsv32::io
