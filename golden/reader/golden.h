#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "src/model/case.h"
#include "src/model/trace.h"

/// The face of golden/: HDF5 files made by real Hugging Face transformers (golden/make).
/// A file is opened only after its sha256 matched golden/data/manifest.json. Layout:
/// docs/formats.md 8.
namespace dsv32::golden {

/// What a sketch golden keeps of one tap.
using SketchedTap = TapSketch;

struct Golden {
  std::string case_name;
  std::string kind;     // "full", "sketch" or "generate"
  std::string dialect;  // "hf"
  DType dtype = DType::float32;
  std::map<std::string, std::string> attributes;  // every root attribute: provenance
  Trace trace;  // full taps; in a sketch the decisions and scalars only
  std::map<std::string, SketchedTap> sketches;
  /// input_ids, attention_mask, position_ids, labels.
  std::map<std::string, std::vector<int64_t>> inputs;
};

struct ManifestEntry {
  std::string case_name;  // of a training golden: SUITE.CASE, of a decoding: generate.CASE
  std::string file;       // plain name next to the manifest
  std::string kind;       // "full", "sketch", "generate" or "train"
  std::string sha256;
  uint64_t size = 0;
};

std::filesystem::path default_directory();
/// Throws Error (artefact).
std::vector<ManifestEntry> read_manifest(const std::filesystem::path& directory);
/// Checks the hash, then opens and reads. Throws Error (artefact) on a wrong hash, version, layout
/// or shape; usage when there is none.
Golden load(const std::string& case_name,
            const std::filesystem::path& directory = default_directory());
bool exists(const std::string& case_name,
            const std::filesystem::path& directory = default_directory());

}  // namespace dsv32::golden
