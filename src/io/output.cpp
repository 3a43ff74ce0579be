#include "src/io/output.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "src/io/io.h"
#include "src/model/errors.h"

namespace dsv32::io {
namespace {

constexpr char kTemporary[] = ".tmp.";
constexpr mode_t kPermissions = 07777;

[[noreturn]] void lack(const fs::path& path, const std::string& action, const std::string& expected,
                       const std::string& got) {
  throw Error(ExitCode::environment, {.where = path.string(),
                                      .what = action,
                                      .expected = expected,
                                      .got = got,
                                      .hint = "an older file of that name was left as it was"});
}

[[noreturn]] void lack(const fs::path& path, const std::string& action) {
  lack(path, action, "a writable place with room", std::strerror(errno));
}

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// --- where a path leads ------------------------------------------------------------------------

/// The end of a chain of links: a path, or a descriptor of this process.
struct Place {
  fs::path path;
  int descriptor = -1;
};

std::optional<int> whole_number(const std::string& text) {
  int value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || value < 0) return std::nullopt;
  return value;
}

/// The folder with every link of it resolved; as it is where it does not exist.
fs::path resolved_folder(const fs::path& path) {
  std::error_code error;
  const fs::path folder = fs::canonical(folder_of(path), error);
  return error ? folder_of(path) : folder;
}

Place place_of(fs::path path) {
  if (path == "-") return {path, STDOUT_FILENO};
  constexpr int kMostLinks = 40;  // as the kernel
  const fs::path own = "/proc/" + std::to_string(::getpid()) + "/fd";
  const fs::path asked = path;
  for (int i = 0; i < kMostLinks; ++i) {
    path = resolved_folder(path) / path.filename();
    // The text of these links is no path: "pipe:[4711]".
    const auto number = whole_number(path.filename().string());
    if (path.parent_path() == own && number) return {asked, *number};
    std::error_code error;
    if (!fs::is_symlink(fs::symlink_status(path, error))) return {path};
    const fs::path target = fs::read_symlink(path, error);
    if (error) lack(asked, "link", "a link that can be followed", error.message());
    path = path.parent_path() / target;
  }
  lack(asked, "link", "a chain of links that ends", "a circle");
}

// --- temporaries ---------------------------------------------------------------------------------

/// Those of this process, for the end of a stopped run.
class Registry {
 public:
  void add(const fs::path& path) {
    const std::lock_guard lock(mutex_);
    paths_.insert(path);
  }
  void drop(const fs::path& path) {
    const std::lock_guard lock(mutex_);
    paths_.erase(path);
  }
  void remove_all() {
    const std::lock_guard lock(mutex_);
    for (const fs::path& path : paths_) ::unlink(path.c_str());
    paths_.clear();
  }

 private:
  std::mutex mutex_;
  std::set<fs::path> paths_;
};

Registry& registry() {
  static Registry all;
  return all;
}

struct TemporaryName {
  std::string of;
  int process = 0;
};

/// The parts of `.NAME.tmp.PID`.
std::optional<TemporaryName> parse_temporary(const std::string& name) {
  const size_t at = name.rfind(kTemporary);
  if (at == std::string::npos || at < 2 || name[0] != '.') return std::nullopt;
  const auto process = whole_number(name.substr(at + std::strlen(kTemporary)));
  if (!process) return std::nullopt;
  return TemporaryName{name.substr(1, at - 1), *process};
}

bool is_running(int process) {
  std::error_code error;
  return fs::exists("/proc/" + std::to_string(process), error) || error;
}

/// Nobody holds its lock and its process is gone. (The lock tells apart what another container with
/// process numbers of its own, or an earlier run with our number, has made.)
bool is_dead(const fs::path& path, int process) {
  if (process != ::getpid() && is_running(process)) return false;
  const int fd = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return false;
  const bool held = ::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  ::close(fd);
  return !held;
}

}  // namespace

void remove_dead_temporaries(const fs::path& folder,
                             const std::function<bool(const std::string&)>& is_ours) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const auto name = parse_temporary(entry.path().filename().string());
    if (name && is_ours(name->of) && is_dead(entry.path(), name->process))
      ::unlink(entry.path().c_str());
  }
}

void remove_temporaries() { registry().remove_all(); }

// --- the kinds of places -------------------------------------------------------------------------

class OutputFile::Sink {
 public:
  virtual ~Sink() = default;
  virtual void write(uint64_t offset, const void* data, size_t size) = 0;
  virtual void seal() = 0;
  /// Takes the name; `keep_old`: in a way that put_back() can undo.
  virtual void take_name(bool) {}
  virtual void put_back() noexcept {}
  virtual void settle() {}
};

namespace {

/// `.NAME.tmp.PID` beside a file, locked while it is open; goes away with the object.
class Temporary {
 public:
  Temporary(const fs::path& of, mode_t mode) {
    const std::string name = of.filename().string();
    remove_dead_temporaries(folder_of(of), [&](const std::string& other) { return other == name; });
    path_ = folder_of(of) / ("." + name + kTemporary + std::to_string(::getpid()));
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd_ < 0) lack(of, "create");
    registry().add(path_);
    ::flock(fd_, LOCK_EX | LOCK_NB);
  }
  ~Temporary() {
    close();
    ::unlink(path_.c_str());  // gone already where it took its name
    registry().drop(path_);
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  const char* path() const { return path_.c_str(); }
  int fd() const { return fd_; }
  bool close() {
    const int fd = std::exchange(fd_, -1);
    return fd < 0 || ::close(fd) == 0;
  }

 private:
  fs::path path_;
  int fd_ = -1;
};

/// A regular file: written beside it, then renamed.
class Replacement : public OutputFile::Sink {
 public:
  explicit Replacement(const fs::path& path) : path_(path) {
    struct stat old = {};
    there_ = ::stat(path.c_str(), &old) == 0;
    if (there_ && ::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) != 0)
      lack(path, "replace", "a file that may be written", std::strerror(errno));
    // Private until it has the older file's owner.
    temporary_.emplace(path, there_ ? 0600 : 0666);
    if (there_) be_like(old);
  }

  void write(uint64_t offset, const void* data, size_t size) override {
    const auto* at = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t n = ::pwrite(temporary_->fd(), at, size, static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) lack(path_, "write");
      at += n, offset += static_cast<uint64_t>(n), size -= static_cast<size_t>(n);
    }
  }

  void seal() override {
    if (temporary_->fd() < 0) return;
    if (::fsync(temporary_->fd()) != 0) lack(path_, "fsync");
    if (!temporary_->close()) lack(path_, "close");
  }

  void take_name(bool keep_old) override {
    const char* from = temporary_->path();
    const char* to = path_.c_str();
    struct stat now = {};
    if (::lstat(to, &now) == 0 && !S_ISREG(now.st_mode))
      lack(path_, "rename", "the regular file that was there", "something else of that name");
    // Exchanged, the temporary name keeps the older file. Not every file system can.
    swapped_ =
        keep_old && there_ && ::renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) == 0;
    if (!swapped_ && ::rename(from, to) != 0) lack(path_, "rename");
    named_ = true;
  }

  void put_back() noexcept override {
    if (!named_) return;
    if (swapped_) ::rename(temporary_->path(), path_.c_str());
    if (!there_) ::unlink(path_.c_str());
    named_ = false;
  }

  void settle() override {
    temporary_.reset();
    const int fd = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;  // a folder that can be written but not read: the rename has been done
    ::fsync(fd);
    ::close(fd);
  }

 private:
  void be_like(const struct stat& old) const {
    struct stat own = {};
    const int fd = temporary_->fd();
    const bool known = ::fstat(fd, &own) == 0;
    const bool same = known && own.st_uid == old.st_uid && own.st_gid == old.st_gid;
    if (!same && ::fchown(fd, old.st_uid, old.st_gid) != 0)
      lack(path_, "replace", "a file whose owner may be kept", std::strerror(errno));
    if (::fchmod(fd, old.st_mode & kPermissions) != 0) lack(path_, "chmod");
  }

  fs::path path_;
  std::optional<Temporary> temporary_;
  bool there_ = false, named_ = false, swapped_ = false;
};

/// While it lives, a pipe without a reader is a failed write (EPIPE) and no signal.
class NoBrokenPipe {
 public:
  NoBrokenPipe() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~NoBrokenPipe() {
    const struct timespec now = {};
    while (sigtimedwait(&pipe_, nullptr, &now) < 0 && errno == EINTR) {
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  NoBrokenPipe(const NoBrokenPipe&) = delete;
  NoBrokenPipe& operator=(const NoBrokenPipe&) = delete;

 private:
  sigset_t pipe_ = {}, before_ = {};
};

/// A pipe, a character device or an open descriptor: bytes go through in order.
class Stream : public OutputFile::Sink {
 public:
  explicit Stream(const Place& place) : path_(place.path) {
    fd_ = place.descriptor >= 0 ? ::fcntl(place.descriptor, F_DUPFD_CLOEXEC, 0)
                                : ::open(path_.c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC);
    if (fd_ < 0) fail("open");
  }
  ~Stream() override { ::close(fd_); }

  void write(uint64_t offset, const void* data, size_t size) override {
    if (size == 0) return;
    waiting_[offset].assign(static_cast<const char*>(data), size);
    for (auto next = waiting_.begin(); next != waiting_.end() && next->first == at_;
         next = waiting_.erase(next)) {
      pass(next->second);
      at_ += next->second.size();
    }
  }

  void seal() override {
    if (waiting_.empty()) return;
    throw Error(ExitCode::internal, {.where = path_.string(),
                                     .what = "stream",
                                     .expected = "bytes without a gap",
                                     .got = "none at byte " + std::to_string(at_)});
  }

 private:
  [[noreturn]] void fail(const std::string& action) const {
    throw Error(ExitCode::environment, {.where = path_.string(),
                                        .what = action,
                                        .expected = "a place that takes the bytes",
                                        .got = std::strerror(errno)});
  }

  void pass(const std::string& bytes) const {
    const NoBrokenPipe quiet;
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t n = ::write(fd_, bytes.data() + done, bytes.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) fail("write");
      done += static_cast<size_t>(n);
    }
  }

  fs::path path_;
  int fd_ = -1;
  uint64_t at_ = 0;
  std::map<uint64_t, std::string> waiting_;  // by offset: what came before its turn
};

/// `Replacement` for a regular file or none yet; refuses what must not be written.
std::unique_ptr<OutputFile::Sink> sink_of(const fs::path& path) {
  const Place place = place_of(path);
  struct stat there = {};
  if (place.descriptor >= 0) return std::make_unique<Stream>(place);
  const bool exists = ::stat(place.path.c_str(), &there) == 0;
  if (!exists || S_ISREG(there.st_mode)) return std::make_unique<Replacement>(place.path);
  if (S_ISFIFO(there.st_mode) || S_ISCHR(there.st_mode)) return std::make_unique<Stream>(place);
  lack(path, "write", "a file, a pipe or a character device",
       S_ISDIR(there.st_mode)   ? "a folder"
       : S_ISBLK(there.st_mode) ? "a block device"
                                : "a socket");
}

}  // namespace

OutputFile::OutputFile(const fs::path& path) : sink_(sink_of(path)) {}
OutputFile::~OutputFile() = default;

void OutputFile::write(uint64_t offset, const void* data, size_t size) {
  sink_->write(offset, data, size);
}

void OutputFile::seal() { sink_->seal(); }

void OutputFile::commit() {
  sink_->seal();
  sink_->take_name(false);
  sink_->settle();
}

OutputFile& OutputSet::add(const fs::path& path) {
  return *files_.emplace_back(std::make_unique<OutputFile>(path));
}

void OutputSet::put(const fs::path& path, const std::string& content) {
  OutputFile& file = add(path);
  file.write(0, content.data(), content.size());
  file.seal();
}

void OutputSet::commit() {
  for (const auto& file : files_) file->sink_->seal();
  try {
    for (const auto& file : files_) file->sink_->take_name(true);
  } catch (...) {
    for (const auto& file : files_) file->sink_->put_back();
    throw;
  }
  for (const auto& file : files_) file->sink_->settle();
}

void write_file(const fs::path& path, const std::string& content) {
  OutputFile file(path);
  file.write(0, content.data(), content.size());
  file.commit();
}

void write_files(const std::vector<std::pair<fs::path, std::string>>& files) {
  OutputSet set;
  for (const auto& [path, content] : files) set.put(path, content);
  set.commit();
}

void probe_output(const fs::path& path) {
  const Place place = place_of(path);
  struct stat there = {};
  const bool pipe =
      place.descriptor < 0 && ::stat(place.path.c_str(), &there) == 0 && S_ISFIFO(there.st_mode);
  if (!pipe) {
    OutputFile file(path);  // and away again
  } else if (::access(place.path.c_str(), W_OK) != 0) {
    lack(path, "open", "a pipe that may be written", std::strerror(errno));
  }
}

bool is_standard_output(const fs::path& path) { return place_of(path).descriptor == STDOUT_FILENO; }

bool same_file(const fs::path& a, const fs::path& b) {
  struct stat first = {}, second = {};
  const bool there = ::stat(a.c_str(), &first) == 0;
  if (there != (::stat(b.c_str(), &second) == 0)) return false;
  // A folder that is not there yet has no links: `..` undoes its name.
  const auto normal = [](const fs::path& path) { return fs::absolute(path).lexically_normal(); };
  if (!there) return place_of(a).path == place_of(b).path || normal(a) == normal(b);
  return first.st_dev == second.st_dev && first.st_ino == second.st_ino && !S_ISCHR(first.st_mode);
}

}  // namespace dsv32::io
