#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "src/model/tensor.h"

namespace dsv32::io {

/// Tensors that wait on disk: each lies in an unlinked temporary file in TMPDIR (else /tmp) that is
/// mapped, so that what a run must keep takes no memory while nobody reads it. The file goes with
/// the tensor.
class Scratch {
 public:
  /// A tensor of zeros; a small one is in memory as any other. Throws Error (environment) when the
  /// disk is full or the folder takes no file.
  HostTensor tensor(DType dtype, const Shape& shape);
  /// From here on the tensors take no memory until they are read or written again.
  void rest();

 private:
  struct Mapping;
  std::vector<std::weak_ptr<Mapping>> mappings_;
};

/// TMPDIR, else the system's.
std::string scratch_folder();
/// From this many bytes on a tensor waits on disk.
inline constexpr int64_t kScratchBytes = int64_t{16} << 20;

}  // namespace dsv32::io
