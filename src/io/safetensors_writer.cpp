#include <algorithm>
#include <numeric>

#include "src/io/io.h"
#include "src/io/json.h"
#include "src/io/output.h"
#include "src/io/safetensors_header.h"
#include "src/model/errors.h"

namespace dsv32::io {
namespace {

constexpr size_t kHeaderAlignment = 8;  // the data section starts at a multiple of it

using Specs = std::vector<std::pair<std::string, TensorEntry>>;

/// Gives every tensor its place: wide types first, otherwise in the caller's order.
void place(Specs& specs) {
  std::vector<size_t> order(specs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&specs](size_t a, size_t b) {
    return item_size(specs[a].second.dtype) > item_size(specs[b].second.dtype);
  });
  uint64_t at = 0;
  for (size_t i : order) {
    TensorEntry& entry = specs[i].second;
    entry.begin = at;
    at += static_cast<uint64_t>(numel(entry.shape) * item_size(entry.dtype));
    entry.end = at;
  }
}

std::string member(const std::string& name, const TensorEntry& entry) {
  const Json value = {
      {"dtype", entry.stored.empty() ? safetensors_dtype(entry.dtype) : entry.stored},
      {"shape", entry.shape},
      {"data_offsets", {entry.begin, entry.end}}};
  return Json(name).dump() + ":" + value.dump();
}

/// The 8 + N bytes before the data.
std::string header_bytes(const std::map<std::string, std::string>& metadata, const Specs& specs) {
  std::string text = "{";
  if (!metadata.empty()) text += "\"__metadata__\":" + Json(metadata).dump();
  for (const auto& [name, entry] : specs)
    text += (text.size() > 1 ? "," : "") + member(name, entry);
  text += "}";
  while (text.size() % kHeaderAlignment != 0) text += ' ';
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

[[noreturn]] void misuse(const std::string& what, const std::string& expected,
                         const std::string& got) {
  throw Error(ExitCode::internal,
              {.where = "safetensors writer", .what = what, .expected = expected, .got = got});
}

std::string describe(DType dtype, const Shape& shape) {
  return std::string(to_string(dtype)) + to_string(shape);
}

}  // namespace

struct SafetensorsWriter::Impl {
  Impl(std::unique_ptr<OutputFile> own_file, OutputFile& any_file,
       const std::map<std::string, std::string>& metadata, const Specs& unplaced)
      : own(std::move(own_file)), file(any_file), specs(unplaced) {
    place(specs);
    const std::string header = header_bytes(metadata, specs);
    data_start = header.size();
    file.write(0, header.data(), header.size());
  }

  std::unique_ptr<OutputFile> own;  // none: the caller's
  OutputFile& file;
  Specs specs;
  uint64_t data_start = 0;
  size_t written = 0;
};

SafetensorsWriter::SafetensorsWriter(const fs::path& path,
                                     const std::map<std::string, std::string>& metadata,
                                     const Specs& specs) {
  auto own = std::make_unique<OutputFile>(path);
  OutputFile& file = *own;
  impl_ = std::make_unique<Impl>(std::move(own), file, metadata, specs);
}

SafetensorsWriter::SafetensorsWriter(OutputFile& file,
                                     const std::map<std::string, std::string>& metadata,
                                     const Specs& specs)
    : impl_(std::make_unique<Impl>(nullptr, file, metadata, specs)) {}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::append(const HostTensor& tensor) {
  if (impl_->written == impl_->specs.size()) misuse("append", "no more tensors", "one more");
  const auto& [name, entry] = impl_->specs[impl_->written];
  if (tensor.dtype() != entry.dtype || tensor.shape() != entry.shape)
    misuse("append " + name, describe(entry.dtype, entry.shape),
           describe(tensor.dtype(), tensor.shape()));
  impl_->file.write(impl_->data_start + entry.begin, tensor.raw(),
                    static_cast<size_t>(tensor.bytes()));
  ++impl_->written;
}

void SafetensorsWriter::finish() {
  if (impl_->written != impl_->specs.size())
    misuse("finish", std::to_string(impl_->specs.size()) + " tensors",
           std::to_string(impl_->written));
  impl_->own ? impl_->file.commit() : impl_->file.seal();
}

}  // namespace dsv32::io
