#include "src/io/volume/part_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "src/io/sha256.h"
#include "src/io/volume/patience.h"
#include "src/model/errors.h"

namespace dsv32::io {
namespace {

constexpr size_t kHexDigits = 64;
constexpr mode_t kMode = 0666;

std::string head_of(const PartOf& of) {
  return "dsv32-copy 1 " + std::to_string(of.size) + " " + std::to_string(of.changed_at) + " " +
         std::to_string(of.block) + "\n";
}

std::string hex(const Digest& digest) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : digest) text += {kDigits[byte >> 4], kDigits[byte & 15]};
  return text;
}

std::optional<Digest> parse_hex(std::string_view text) {
  Digest digest;
  if (text.size() != kHexDigits) return std::nullopt;
  for (size_t i = 0; i < digest.size(); ++i) {
    const char* at = text.data() + 2 * i;
    const auto [end, error] = std::from_chars(at, at + 2, digest[i], 16);
    if (error != std::errc() || end != at + 2) return std::nullopt;
  }
  return digest;
}

Digest digest_of(std::span<const std::byte> bytes) {
  Sha256 sha;
  sha.update(bytes.data(), bytes.size());
  return sha.bytes();
}

/// The whole of a small file; what cannot be read is empty.
std::string text_of(int fd) {
  std::string text;
  char buffer[1 << 16];
  for (ssize_t n = 0;
       (n = ::pread(fd, buffer, sizeof buffer, static_cast<off_t>(text.size()))) > 0;)
    text.append(buffer, static_cast<size_t>(n));
  return text;
}

bool write_all(int fd, const void* data, size_t size, std::optional<uint64_t> offset) {
  const auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n =
        offset ? ::pwrite(fd, at, size, static_cast<off_t>(*offset)) : ::write(fd, at, size);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n, size -= static_cast<size_t>(n);
    if (offset) *offset += static_cast<uint64_t>(n);
  }
  return true;
}

}  // namespace

PartFile::PartFile(const std::filesystem::path& file, const std::filesystem::path& list,
                   const PartOf& of)
    : path_(file), of_(of), digests_((of.size + of.block - 1) / of.block) {
  file_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, kMode);
  if (file_ < 0) fail("open");
  list_ = ::open(list.c_str(), O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, kMode);
  if (list_ < 0) fail("open");
  read_list(list);
  if (::ftruncate(file_, static_cast<off_t>(of.size)) != 0) fail("make room");
  // A file system that cannot set room aside finds out when it writes.
  if (of.size == 0 || ::fallocate(file_, 0, 0, static_cast<off_t>(of.size)) == 0) return;
  if (errno == EOPNOTSUPP || errno == ENOSYS) return;
  const int error = errno;
  const auto is_there = [](const auto& digest) { return digest.has_value(); };
  const bool is_empty = std::none_of(digests_.begin(), digests_.end(), is_there);
  if (is_empty && ::ftruncate(file_, 0) != 0) fail("give room back");
  errno = error;
  fail("make room");
}

PartFile::~PartFile() {
  if (file_ >= 0) ::close(file_);
  if (list_ >= 0) ::close(list_);
}

void PartFile::fail(const std::string& what) const {
  throw Error(ExitCode::environment,
              {.where = path_.string(),
               .what = what,
               .expected = "a disk with room for " + std::to_string(of_.size) + " bytes",
               .got = std::strerror(errno),
               .hint = "what was copied is kept: the same command goes on from it"});
}

/// Takes whole lines alone: a kill may have cut the last one. A list of another source is begun
/// anew.
void PartFile::read_list(const std::filesystem::path& list) {
  const std::string text = text_of(list_), head = head_of(of_);
  size_t end = 0;
  if (text.starts_with(head)) {
    for (size_t at = end = head.size(), next = 0; (next = text.find('\n', at)) != std::string::npos;
         at = end = next + 1) {
      const std::string_view line(text.data() + at, next - at);
      const size_t space = line.find(' ');
      size_t block = 0;
      const auto [stop, error] =
          std::from_chars(line.data(), line.data() + std::min(space, line.size()), block);
      const auto digest = space < line.size() ? parse_hex(line.substr(space + 1)) : std::nullopt;
      if (error == std::errc() && digest && block < digests_.size()) digests_[block] = digest;
    }
  }
  if (::ftruncate(list_, static_cast<off_t>(end)) != 0) fail("shorten " + list.string());
  if (end == 0 && !write_all(list_, head.data(), head.size(), {})) fail("write " + list.string());
}

size_t PartFile::size(size_t block) const {
  return static_cast<size_t>(std::min(of_.block, of_.size - begin(block)));
}

void PartFile::put(size_t block, std::span<const std::byte> bytes, const Digest& digest) {
  if (!write_all(file_, bytes.data(), bytes.size(), begin(block)))
    fail("write at byte " + std::to_string(begin(block)));
  // One call: lines of several threads do not mix.
  const std::string line = std::to_string(block) + " " + hex(digest) + "\n";
  if (!write_all(list_, line.data(), line.size(), {})) fail("write the list of blocks");
  digests_[block] = digest;
}

void PartFile::settle() {
  if (::fsync(file_) != 0) fail("fsync");
  ::posix_fadvise(file_, 0, 0, POSIX_FADV_DONTNEED);
}

bool PartFile::is_right(size_t block, std::span<std::byte> buffer) const {
  const std::span<std::byte> bytes = buffer.first(size(block));
  const ReadAt from_file = [this](uint64_t at, void* out, size_t count) {
    return ::pread(file_, out, count, static_cast<off_t>(at));
  };
  const size_t got =
      read_patiently(from_file, begin(block), bytes.data(), bytes.size(), path_.string());
  return got == bytes.size() && digest_of(bytes) == *digests_[block];
}

std::string PartFile::digest() const {
  Sha256 all;
  for (const auto& digest : digests_) all.update(digest->data(), digest->size());
  return all.hex();
}

int64_t PartFile::changed_at() const {
  constexpr int64_t kNanoseconds = 1'000'000'000;
  struct stat now = {};
  if (::fstat(file_, &now) != 0) fail("status");
  return int64_t{now.st_mtim.tv_sec} * kNanoseconds + now.st_mtim.tv_nsec;
}

}  // namespace dsv32::io
