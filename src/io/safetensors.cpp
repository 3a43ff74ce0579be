#include <algorithm>
#include <bit>
#include <cstring>

#include "src/io/file.h"
#include "src/io/io.h"
#include "src/io/safetensors_header.h"
#include "src/io/text.h"
#include "src/io/volume/read_ahead.h"

namespace dsv32::io {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data are little-endian");

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeader = 100'000'000;  // the format's own limit

/// Length of the header, checked against the real size of the file before anything is allocated.
uint64_t header_length(const InputFile& file, const std::string& where) {
  if (file.size() < kLengthBytes)
    refuse({.where = where,
            .what = "length",
            .expected = "a safetensors file, 8 bytes or more",
            .got = std::to_string(file.size()) + " bytes"});
  uint64_t length = 0;
  file.read(0, &length, sizeof length);
  if (length > kMaxHeader)
    refuse({.where = where,
            .what = "header length",
            .expected = "at most " + std::to_string(kMaxHeader),
            .got = std::to_string(length),
            .hint = "is this a safetensors file?"});
  if (length > file.size() - kLengthBytes)
    refuse({.where = where,
            .what = "header length",
            .expected =
                "at most " + std::to_string(file.size() - kLengthBytes) + ", the rest of the file",
            .got = std::to_string(length) + ", a truncated file"});
  return length;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const fs::path& path)
    : path_(path), file_(std::make_unique<InputFile>(path)) {
  const std::string where = path.string();
  std::string text(header_length(*file_, where), '\0');
  file_->read(kLengthBytes, text.data(), text.size());
  data_start_ = kLengthBytes + text.size();
  SafetensorsHeader header = parse_safetensors_header(text, file_->size() - data_start_, where);
  metadata_ = std::move(header.metadata);
  tensors_ = std::move(header.tensors);
}

SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;

uint64_t SafetensorsFile::size() const { return file_->size(); }

std::vector<std::string> SafetensorsFile::names_by_offset() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : tensors_) names.push_back(name);
  std::stable_sort(names.begin(), names.end(), [this](const std::string& a, const std::string& b) {
    const TensorEntry &x = tensors_.at(a), &y = tensors_.at(b);
    return std::pair(x.begin, x.end) < std::pair(y.begin, y.end);
  });
  return names;
}

const TensorEntry& SafetensorsFile::known(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end())
    refuse({.where = path_.string(),
            .what = "tensor",
            .expected = printable(name),
            .got = "no tensor of that name"});
  return it->second;
}

const TensorEntry& SafetensorsFile::entry(const std::string& name) const {
  const TensorEntry& stored = known(name);
  if (!stored.readable)
    refuse({.where = path_.string(),
            .what = "tensor " + printable(name) + ": dtype",
            .expected = "F64, F32, BF16, F16, I64, I32 or U8",
            .got = std::string(stored.stored)});
  return stored;
}

HostTensor SafetensorsFile::read(const std::string& name) const {
  return read_range(name, 0, entry(name).shape);
}

HostTensor SafetensorsFile::read_range(const std::string& name, int64_t first,
                                       const Shape& shape) const {
  return read_elements(name, entry(name), first, shape);
}

HostTensor SafetensorsFile::read_bytes(const std::string& name, int64_t first,
                                       const Shape& shape) const {
  const TensorEntry& stored = known(name);
  if (static_cast<int64_t>(stored.end - stored.begin) != numel(stored.shape))
    refuse({.where = path_.string(),
            .what = "tensor " + printable(name) + ": dtype",
            .expected = "one of elements of one byte",
            .got = std::string(stored.stored)});
  TensorEntry bytes = stored;
  bytes.dtype = DType::uint8;
  return read_elements(name, bytes, first, shape);
}

HostTensor SafetensorsFile::read_elements(const std::string& name, const TensorEntry& stored,
                                          int64_t first, const Shape& shape) const {
  const int64_t item = item_size(stored.dtype);
  const int64_t available = static_cast<int64_t>(stored.end - stored.begin) / item;
  const int64_t count = numel(shape);
  if (first < 0 || first > available || count > available - first)
    throw Error(ExitCode::internal,
                {.where = path_.string(),
                 .what = "range of " + printable(name),
                 .expected = "within " + std::to_string(available) + " elements",
                 .got = std::to_string(first) + " + " + std::to_string(count)});
  HostTensor out(stored.dtype, shape);
  const uint64_t at = data_start_ + stored.begin + static_cast<uint64_t>(first * item);
  const auto size = static_cast<size_t>(out.bytes());
  if (ahead_) {
    ahead_->read(*file_, at, out.raw(), size);
  } else {
    file_->read(at, out.raw(), size);
  }
  return out;
}

FileRange SafetensorsFile::range(const std::string& name, int64_t first, int64_t count) const {
  const TensorEntry& stored = known(name);
  const uint64_t bytes = stored.end - stored.begin;
  const auto elements = static_cast<uint64_t>(std::max<int64_t>(numel(stored.shape), 1));
  const uint64_t item = bytes / elements, at = data_start_ + stored.begin;
  return {file_.get(), at + static_cast<uint64_t>(first) * item,
          at + static_cast<uint64_t>(first + count) * item};
}

}  // namespace dsv32::io
