#include "src/io/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "src/io/io.h"
#include "src/io/text.h"
#include "src/io/volume/patience.h"

namespace dsv32::io {
namespace {

[[noreturn]] void lack(Complaint complaint) {
  throw Error(ExitCode::environment, std::move(complaint));
}

}  // namespace

const Home& home_and_origin() {
  static const Home home = [] {
    std::error_code error;
    const fs::path program = fs::read_symlink("/proc/self/exe", error);
    const fs::path beside = program.parent_path().parent_path() / "share" / "dsv32-verify";
    if (fs::is_regular_file(beside / "configs" / "cases.json", error))
      return Home{beside, "beside the program"};
    const char* set = std::getenv("DSV32_DATA");
    if (set != nullptr && *set != '\0') return Home{fs::path(set), "DSV32_DATA"};
    return Home{fs::path(DSV32_SOURCE_DIR), "source tree"};
  }();
  return home;
}

const fs::path& home() { return home_and_origin().path; }

InputFile::InputFile(const fs::path& path) : path_(path) {
  const auto open_it = [&] {
    // O_NONBLOCK: opening a pipe must not wait for its writer.
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    return fd_ >= 0;
  };
  const Outcome opened = patiently(open_it);
  if (opened.error == EMFILE || opened.error == ENFILE)
    lack({.where = path.string(),
          .what = "open",
          .expected = "a free file descriptor",
          .got = reason(opened)});
  if (is_of_volume(opened.error))
    lack({.where = path.string(),
          .what = "open",
          .expected = "a readable file",
          .got = reason(opened)});
  if (opened.error != 0)
    refuse({.where = path.string(),
            .what = "file",
            .expected = "a readable file",
            .got = reason(opened)});
  if (::fstat(fd_, &opened_) != 0 || !S_ISREG(opened_.st_mode)) {
    ::close(fd_);
    refuse({.where = path.string(),
            .what = "file",
            .expected = "a regular file",
            .got = S_ISDIR(opened_.st_mode) ? "a directory" : "something else"});
  }
}

InputFile::~InputFile() { ::close(fd_); }

void InputFile::read(uint64_t offset, void* out, size_t size) const {
  const ReadAt from_file = [this](uint64_t at, void* to, size_t count) {
    const ssize_t n = ::pread(fd_, to, count, static_cast<off_t>(at));
    const int error = errno;
    if (n < 0 && error == ESTALE) reopen();
    errno = error;
    return n;
  };
  const size_t got = read_patiently(from_file, offset, out, size, path_.string());
  if (got < size)
    refuse({.where = path_.string(),
            .what = "length",
            .expected = std::to_string(this->size()) + " bytes",
            .got = "a file cut at byte " + std::to_string(offset + got) + " while it was read"});
  check_unchanged();
}

/// A network file system has dropped its handle: another one to the same file takes its place.
void InputFile::reopen() const {
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return;
  struct stat now = {};
  if (::fstat(fd, &now) == 0 && is_same(now)) ::dup3(fd, fd_, O_CLOEXEC);
  ::close(fd);
}

bool InputFile::is_same(const struct stat& now) const {
  return now.st_size == opened_.st_size && now.st_mtim.tv_sec == opened_.st_mtim.tv_sec &&
         now.st_mtim.tv_nsec == opened_.st_mtim.tv_nsec;
}

void InputFile::check_unchanged() const {
  struct stat now = {};
  const Outcome outcome = patiently([&] { return ::fstat(fd_, &now) == 0; });
  if (outcome.error != 0)
    lack({.where = path_.string(),
          .what = "status",
          .expected = "a file that is still there",
          .got = reason(outcome)});
  if (!is_same(now))
    refuse({.where = path_.string(),
            .what = "file",
            .expected = "a file that stays as it is while it is read",
            .got = "a change of size or modification time"});
}

void InputFile::forget(uint64_t offset, uint64_t size) const {
  ::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_DONTNEED);
}

int64_t InputFile::changed_at() const {
  constexpr int64_t kNanoseconds = 1'000'000'000;
  return int64_t{opened_.st_mtim.tv_sec} * kNanoseconds + opened_.st_mtim.tv_nsec;
}

void require_space(const fs::path& directory, uint64_t bytes) {
  std::error_code error;
  const auto space = fs::space(directory, error);
  if (!error && space.available < bytes)
    lack({.where = directory.string(),
          .what = "disk",
          .expected = std::to_string(bytes) + " free bytes",
          .got = std::to_string(space.available)});
}

void make_directory(const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error || !fs::is_directory(directory))
    lack({.where = directory.string(),
          .what = "directory",
          .expected = "a directory that can be made",
          .got = error ? error.message() : "a file of that name"});
}

std::string read_file(const fs::path& path, uint64_t limit) {
  const InputFile file(path);
  if (file.size() > limit)
    refuse({.where = path.string(),
            .what = "size",
            .expected = "at most " + std::to_string(limit) + " bytes",
            .got = std::to_string(file.size())});
  std::string content(file.size(), '\0');
  file.read(0, content.data(), content.size());
  return content;
}

}  // namespace dsv32::io
