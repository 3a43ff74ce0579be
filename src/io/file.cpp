#include "src/io/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "src/io/io.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

std::string reason() { return std::strerror(errno); }

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
  // O_NONBLOCK: opening a pipe must not wait for its writer.
  fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  const int error = errno;
  if (fd_ < 0 && (error == EMFILE || error == ENFILE))
    lack({.where = path.string(),
          .what = "open",
          .expected = "a free file descriptor",
          .got = reason()});
  if (fd_ < 0)
    refuse({.where = path.string(),
            .what = "file",
            .expected = "a readable file",
            .got = std::strerror(error)});
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
  auto* at = static_cast<char*>(out);
  while (size > 0) {
    const ssize_t n = ::pread(fd_, at, size, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) lack({.where = path_.string(), .what = "read", .expected = "data", .got = reason()});
    if (n == 0) break;
    at += n, offset += static_cast<uint64_t>(n), size -= static_cast<size_t>(n);
  }
  if (size > 0)
    refuse({.where = path_.string(),
            .what = "length",
            .expected = std::to_string(this->size()) + " bytes",
            .got = "a file cut at byte " + std::to_string(offset) + " while it was read"});
  check_unchanged();
}

void InputFile::check_unchanged() const {
  struct stat now = {};
  const bool same = ::fstat(fd_, &now) == 0 && now.st_size == opened_.st_size &&
                    now.st_mtim.tv_sec == opened_.st_mtim.tv_sec &&
                    now.st_mtim.tv_nsec == opened_.st_mtim.tv_nsec;
  if (!same)
    refuse({.where = path_.string(),
            .what = "file",
            .expected = "a file that stays as it is while it is read",
            .got = "a change of size or modification time"});
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
