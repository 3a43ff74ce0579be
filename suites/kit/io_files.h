#pragma once

#include <sys/resource.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "src/io/io.h"
#include "src/model/errors.h"

/// What the tests of src/io share: a folder of their own, files written byte by byte, expected
/// refusals.
namespace dsv32::suites {

namespace fs = std::filesystem;

/// A folder that goes away with the object.
class Folder {
 public:
  Folder();
  ~Folder();
  fs::path operator/(const std::string& name) const { return path_ / name; }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

/// No file may grow beyond `bytes` while this lives: a full disk for everybody.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes);
  ~FileSizeLimit();

 private:
  struct rlimit before_ = {};
};

/// Writes plain bytes to a file, without the writer under test.
void put(const fs::path& path, const std::string& bytes);
std::string bytes_of(const fs::path& path);

/// Makes a safetensors file: length, header, `data_bytes` zero bytes.
std::string safetensors(const std::string& header, size_t data_bytes);

/// Writes tensors by the writer of src/io.
void put_tensors(const fs::path& path, const std::map<std::string, std::string>& metadata,
                 const std::vector<std::pair<std::string, HostTensor>>& tensors);
HostTensor int64_tensor(const Shape& shape, const std::vector<int64_t>& values);

/// The text of the Error that `action` throws; fails the test when it throws none or one of another
/// exit code.
std::string refusal(const std::function<void()>& action, ExitCode code = ExitCode::artefact);

/// Largest single allocation since the last call of reset_allocations().
size_t largest_allocation();
void reset_allocations();

/// True when `text` contains every part.
bool has(const std::string& text, const std::vector<std::string>& parts);

}  // namespace dsv32::suites
