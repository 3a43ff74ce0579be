#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "src/model/tensor.h"

/// HDF5 behind a policy: only what docs/formats.md 8.2 allows is ever read. The one place
/// that includes hdf5.h is hdf5_file.cpp.
namespace dsv32::golden {

/// An HDF5 file in memory, read-only. Every member throws Error (artefact) with the file's name
/// when the file holds anything else than asked for: another kind of object, link, type, layout,
/// filter or shape. Memory is allocated by the shape that the caller expects, never by the file's
/// word. Objects are named by absolute path ("/taps/embed"); each part of a path must be a hard
/// link.
class Hdf5File {
 public:
  /// `bytes`: the content whose hash was checked. `where`: the name in errors.
  Hdf5File(std::string bytes, std::string where);
  ~Hdf5File();
  Hdf5File(const Hdf5File&) = delete;
  Hdf5File& operator=(const Hdf5File&) = delete;

  bool exists(const std::string& path) const;
  bool is_group(const std::string& path) const;
  /// Counts the members of a group.
  int64_t members(const std::string& path) const;
  /// Lists the names of the attributes of an object, in name order.
  std::vector<std::string> attributes(const std::string& path) const;
  /// Reads a string attribute, or an int64 one of one element as decimal text.
  std::string text_attribute(const std::string& path, const std::string& name) const;
  /// Reads an int64 attribute of rank 1 (or a scalar) with at most `limit` elements.
  std::vector<int64_t> integer_attribute(const std::string& path, const std::string& name,
                                         int64_t limit) const;
  /// Reads a dataset of exactly this type (float32, float64, int64, int32, uint8) and shape.
  HostTensor read(const std::string& path, DType dtype, const Shape& shape) const;
  const std::string& where() const { return where_; }

 private:
  class Handle;
  Handle open(const std::string& path) const;
  std::string where_;
  int64_t file_ = -1;
};

}  // namespace dsv32::golden
