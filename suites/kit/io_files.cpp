#include "suites/kit/io_files.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <new>
#include <sstream>

namespace {
std::atomic<size_t> largest{0};
}

// Every allocation of this program is measured: a reader must not believe the sizes that a file
// claims.
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  size_t seen = largest.load();
  while (size > seen && !largest.compare_exchange_weak(seen, size)) {
  }
  return std::malloc(size == 0 ? 1 : size);
}
void* operator new(size_t size) {
  if (void* p = operator new(size, std::nothrow)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace dsv32::suites {

size_t largest_allocation() { return largest; }
void reset_allocations() { largest = 0; }

Folder::Folder() {
  std::string name = (fs::temp_directory_path() / "dsv32-io-XXXXXX").string();
  path_ = mkdtemp(name.data());
}
/// By hand: libtorch exports a std::filesystem of its own, whose remove_all crashes.
static void remove_tree(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_directory(fs::symlink_status(path, ignored)))
    for (const fs::directory_entry& entry : fs::directory_iterator(path, ignored))
      remove_tree(entry.path());
  fs::remove(path, ignored);
}

Folder::~Folder() { remove_tree(path_); }

FileSizeLimit::FileSizeLimit(rlim_t bytes) {
  std::signal(SIGXFSZ, SIG_IGN);
  ::getrlimit(RLIMIT_FSIZE, &before_);
  const struct rlimit limit = {bytes, before_.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &limit);
}

FileSizeLimit::~FileSizeLimit() {
  ::setrlimit(RLIMIT_FSIZE, &before_);
  std::signal(SIGXFSZ, SIG_DFL);
}

void put(const fs::path& path, const std::string& bytes) {
  std::error_code ignored;
  fs::remove(path, ignored);  // ext4 flushes a file that is cut and written again
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string bytes_of(const fs::path& path) {
  std::ostringstream out;
  out << std::ifstream(path, std::ios::binary).rdbuf();
  return out.str();
}

std::string safetensors(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header +
         std::string(data_bytes, '\0');
}

void put_tensors(const fs::path& path, const std::map<std::string, std::string>& metadata,
                 const std::vector<std::pair<std::string, HostTensor>>& tensors) {
  std::vector<std::pair<std::string, io::TensorEntry>> specs;
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, {.dtype = tensor.dtype(), .shape = tensor.shape()}});
  }
  io::SafetensorsWriter writer(path, metadata, specs);
  for (const auto& [name, tensor] : tensors) writer.append(tensor);
  writer.finish();
}

HostTensor int64_tensor(const Shape& shape, const std::vector<int64_t>& values) {
  HostTensor out(DType::int64, shape);
  std::copy(values.begin(), values.end(), out.data<int64_t>().begin());
  return out;
}

std::string refusal(const std::function<void()>& action, ExitCode code) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    EXPECT_FALSE(error.complaint().where.empty()) << error.what();
    EXPECT_FALSE(error.complaint().what.empty()) << error.what();
    EXPECT_FALSE(error.complaint().expected.empty()) << error.what();
    EXPECT_FALSE(error.complaint().got.empty()) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

bool has(const std::string& text, const std::vector<std::string>& parts) {
  return std::all_of(parts.begin(), parts.end(), [&text](const std::string& part) {
    return text.find(part) != std::string::npos;
  });
}

}  // namespace dsv32::suites
