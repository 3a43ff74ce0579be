#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "golden/reader/golden.h"
#include "src/model/case.h"

/// What a golden of a case must hold: docs/formats.md 8 in code. Pure functions, no HDF5.
namespace dsv32::golden {

inline constexpr const char* kFileFormat = "dsv32-verify.golden";
inline constexpr const char* kManifestFormat = "dsv32-verify.golden-manifest";
inline constexpr int kVersion = 1;
inline constexpr uint64_t kMaxFileBytes = uint64_t{64} << 20;

/// Attributes that every golden has.
const std::vector<std::string>& required_attributes();
/// Checks the root attributes against the case; throws Error (artefact) at the first that does not
/// fit.
void check_attributes(const Golden& golden, const ManifestEntry& entry, const Case& c,
                      const std::string& where);
/// Reads the attribute `taps`: names of the vocabulary with a shape in this case, none twice, none
/// missing.
std::vector<std::string> check_taps(const Golden& golden, const Case& c, const std::string& where);
/// The shape of a tap that check_taps let through.
Shape shape_of_tap(const TapName& tap, const Case& c);
/// Throws Error (artefact) unless the inputs are the case's own batch.
void check_inputs(const Golden& golden, const Case& c, const std::string& where);
/// Unpacks bits [B,S,ceil(T/8)] of selected keys to int32 [B,S,index_topk]: ascending, then -1.
HostTensor unpack_topk(const HostTensor& bits, const Case& c, const std::string& where);

}  // namespace dsv32::golden
