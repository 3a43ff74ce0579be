#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "src/model/batch.h"
#include "src/model/case.h"
#include "src/model/trace.h"
#include "src/model/weights.h"

/// The face of src/io: files in and out. Every reader refuses bad input with an Error (artefact)
/// that names file, rule, expected and got, and never allocates by the file's word.
namespace dsv32::io {

namespace fs = std::filesystem;

/// The project's own files (configs/, golden/data/): $DSV32_HOME, else the source tree of the build.
fs::path home();

// --- json ---------------------------------------------------------------------------------------

/// config.json by name ("tiny") or path. Both field styles (SPEC 3). Throws Error.
ModelConfig read_config(const std::string& name_or_path);
/// The config as a Hugging Face config.json (released style), for `weights make`.
std::string config_json(const ModelConfig& config);
/// Parses config text; `where` names it in errors.
ModelConfig parse_config(const std::string& text, const std::string& where);

/// configs/cases.json, in its order.
const std::vector<Case>& cases();
/// Throws Error (usage) with the nearest name.
const Case& find_case(const std::string& name);
/// Names of the shipped configs.
std::vector<std::string> config_names();
/// The cases of `--config X`: the listed ones of that config, or one default case for a path.
std::vector<Case> cases_of_config(const std::string& name_or_path);
/// The case of a trace's metadata: a name, or canonical JSON.
Case case_from_metadata(const std::string& text);
/// The whole case as RFC 8785 JSON (keys config, overrides, seed, B, S, pad, bias_offset, chunks).
std::string case_json(const Case& c);

// --- safetensors --------------------------------------------------------------------------------

struct TensorEntry {
  DType dtype;
  Shape shape;
  uint64_t begin = 0, end = 0;  // in the data section
};

/// A safetensors file, header checked in full before anything else is read.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const fs::path& path);
  ~SafetensorsFile();
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::map<std::string, TensorEntry>& tensors() const { return tensors_; }
  std::vector<std::string> names_by_offset() const;
  HostTensor read(const std::string& name) const;  // pread, aligned copy
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
  int fd_ = -1;
  uint64_t data_start_ = 0;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, TensorEntry> tensors_;
};

/// Writes tensors one after the other into one file: first all specs, then the data in that order.
/// The file appears under its name only when complete (temporary file, fsync, rename).
class SafetensorsWriter {
 public:
  SafetensorsWriter(const fs::path& path, const std::map<std::string, std::string>& metadata,
                    const std::vector<std::pair<std::string, TensorEntry>>& specs);
  ~SafetensorsWriter();  // removes the temporary file unless finished
  void append(const HostTensor& tensor);
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// --- traces and batches -------------------------------------------------------------------------

/// Reads a trace file (FORMATS 4): metadata checked, names known, shapes and dtype classes right for its case,
/// rope layout converted to interleaved. Throws Error (artefact).
Trace read_trace(const fs::path& path);
void write_trace(const fs::path& path, const Trace& trace);
/// `--batch FILE`: input_ids and optional attention_mask, labels. digest = sha256 of the file.
Batch read_batch(const fs::path& path, const ModelConfig& config);

// --- checkpoints --------------------------------------------------------------------------------

/// A checkpoint directory (sharded or single safetensors). Names, shapes and dtypes are checked against the config in
/// the constructor: all missing, unexpected and wrong-shaped names in one Error. Fused and unfused experts are read.
std::unique_ptr<WeightSource> open_checkpoint(const fs::path& dir, const ModelConfig& config);

struct MakeCheckpointOptions {
  int64_t shard_bytes = int64_t{1} << 30;
  DType dtype = DType::bfloat16;
};
/// Synthetic checkpoint of a case in Hugging Face layout: config.json, model-0000i-of-0000n.safetensors, index. Bounded memory.
void make_checkpoint(const Case& c, const fs::path& dir, const MakeCheckpointOptions& options);

// --- whole files --------------------------------------------------------------------------------

/// Temporary file in the same directory, fsync, rename. Throws Error (environment).
void write_file(const fs::path& path, const std::string& content);
/// Throws Error (artefact) when it cannot be read or is larger than `limit`.
std::string read_file(const fs::path& path, uint64_t limit = uint64_t{1} << 30);
/// Lower-case hex.
std::string sha256_hex(const void* data, size_t size);
std::string sha256_file(const fs::path& path);

}  // namespace dsv32::io
