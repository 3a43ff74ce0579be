#include "src/io/scratch.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "src/model/errors.h"

namespace dsv32::io {

std::string scratch_folder() {
  const char* set = std::getenv("TMPDIR");
  return set != nullptr && *set != '\0' ? set : "/tmp";
}

namespace {

[[noreturn]] void refuse(const std::string& what, size_t size, int error) {
  throw Error(ExitCode::environment,
              {.where = scratch_folder(),
               .what = what,
               .expected = "room for " + std::to_string(size) + " bytes of a large tensor",
               .got = std::strerror(error),
               .hint = "set TMPDIR to a folder on a disk with more room"});
}

/// An open file without a name, of this size.
int make_file(size_t size) {
  std::string path = scratch_folder() + "/dsv32-verify.XXXXXX";
  const int file = ::mkostemp(path.data(), O_CLOEXEC);
  if (file < 0) refuse("temporary file", size, errno);
  ::unlink(path.c_str());
  if (const int error = ::posix_fallocate(file, 0, static_cast<off_t>(size)); error != 0) {
    ::close(file);
    refuse("temporary file", size, error);
  }
  return file;
}

}  // namespace

struct Scratch::Mapping {
  explicit Mapping(size_t bytes) : size(bytes) {
    const int file = make_file(size);
    memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    const int error = errno;
    ::close(file);
    if (memory == MAP_FAILED) refuse("mapped file", size, error);
  }
  ~Mapping() { ::munmap(memory, size); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  size_t size;
  void* memory = nullptr;
};

HostTensor Scratch::tensor(DType dtype, const Shape& shape) {
  const int64_t bytes = numel(shape) * item_size(dtype);
  if (bytes < kScratchBytes) return {dtype, shape};
  const auto mapping = std::make_shared<Mapping>(static_cast<size_t>(bytes));
  std::erase_if(mappings_, [](const auto& known) { return known.expired(); });
  mappings_.push_back(mapping);
  const std::shared_ptr<std::byte[]> memory(static_cast<std::byte*>(mapping->memory),
                                            [mapping](std::byte*) {});
  return HostTensor::over(memory, dtype, shape);
}

void Scratch::rest() {
  for (const auto& known : mappings_)
    if (const auto mapping = known.lock())
      ::madvise(mapping->memory, mapping->size, MADV_DONTNEED);  // of a file: it keeps the bytes
}

}  // namespace dsv32::io
