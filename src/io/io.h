#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "src/model/batch.h"
#include "src/model/case.h"
#include "src/model/lora.h"
#include "src/model/trace.h"
#include "src/model/weights.h"

/// The face of src/io: files in and out. Every reader refuses bad input with an Error (artefact)
/// that names file, rule, expected and got, and never allocates by the file's word.
namespace dsv32::io {

namespace fs = std::filesystem;

class InputFile;
class OutputFile;
class ReadAhead;
struct FileRange;

/// Where the project's own files are (configs/, golden/data/, golden/dump/), and who says so.
struct Home {
  fs::path path;
  std::string origin;  // "beside the program", "DSV32_DATA", "source tree"
};
/// ../share/dsv32-verify beside the program where it is installed, else $DSV32_DATA, else the
/// source tree of the build. An installed program never judges by another one's goldens.
const Home& home_and_origin();
const fs::path& home();

// --- json ---------------------------------------------------------------------------------------

/// Reads a config.json by name ("tiny") or path, in either field style (docs/spec.md 3). Throws
/// Error.
ModelConfig read_config(const std::string& name_or_path);
/// Writes the config as a Hugging Face config.json (released style), for `weights make`.
std::string config_json(const ModelConfig& config);
/// Parses config text; `where` names it in errors.
ModelConfig parse_config(const std::string& text, const std::string& where);

/// The cases of configs/cases.json, in its order.
const std::vector<Case>& cases();
/// Finds a case by its name; throws Error (usage) with the nearest one.
const Case& find_case(const std::string& name);
/// The case that the user names, or gives as JSON with the keys of case_json (the optional ones
/// may be left out). Throws Error: usage for an unknown name, artefact for a case that cannot be.
Case case_of_words(const std::string& name_or_json);
/// The case that is made up for a config of the user's: a shipped name, a path, or config.json as
/// text. B 2, padded, longer than index_topk where the positions allow it.
Case case_of_config(const std::string& name_path_or_json, uint64_t seed = 1);
/// Names of the shipped configs.
std::vector<std::string> config_names();
/// The cases of `--config X`: the listed ones of that config, or one default case for a path.
std::vector<Case> cases_of_config(const std::string& name_or_path);
/// The case of a trace's metadata: a name, or JSON with the keys of case_json and, if wanted,
/// `name`, `mask` (given or none). A case of the same numbers as a listed one is that listed case.
Case case_from_metadata(const std::string& text);
/// The whole case as RFC 8785 JSON (keys config, overrides, seed, B, S, pad, bias_offset, chunks;
/// batch with own data).
std::string case_json(const Case& c);
/// What a trace of this case says in its metadata: the name of a listed case that was not changed,
/// else case_json.
std::string case_metadata(const Case& c);

// --- safetensors --------------------------------------------------------------------------------

struct TensorEntry {
  DType dtype;
  Shape shape;
  uint64_t begin = 0, end = 0;  // bytes in the data section
  /// Spelling in the file: "BF16", "F8_E4M3". A writer takes it where it is given.
  std::string_view stored = {};
  /// False for a valid type that this version does not read; dtype means nothing then.
  bool readable = true;
};

/// A safetensors file, header checked in full before anything else is read.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const fs::path& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::map<std::string, TensorEntry>& tensors() const { return tensors_; }
  std::vector<std::string> names_by_offset() const;
  /// Reads a tensor. Throws Error (artefact) for an unknown name, an unreadable dtype, or a file
  /// that changed since it was opened. Safe to call from several threads.
  HostTensor read(const std::string& name) const;
  /// Reads a part of a tensor: `shape` elements from element `first` on (one expert of a fused
  /// tensor).
  HostTensor read_range(const std::string& name, int64_t first, const Shape& shape) const;
  /// The same of a tensor of any type with elements of one byte, as uint8: FP8 codes and exponents.
  HostTensor read_bytes(const std::string& name, int64_t first, const Shape& shape) const;
  const fs::path& path() const { return path_; }
  uint64_t size() const;
  /// Where these elements lie in the file, as read_range and read_bytes count them.
  FileRange range(const std::string& name, int64_t first, int64_t count) const;
  /// From now on tensors are read through `ahead`, which its owner keeps as long.
  void read_through(ReadAhead* ahead) { ahead_ = ahead; }

 private:
  const TensorEntry& entry(const std::string& name) const;
  const TensorEntry& known(const std::string& name) const;
  HostTensor read_elements(const std::string& name, const TensorEntry& stored, int64_t first,
                           const Shape& shape) const;

  fs::path path_;
  std::unique_ptr<InputFile> file_;
  ReadAhead* ahead_ = nullptr;
  uint64_t data_start_ = 0;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, TensorEntry> tensors_;
};

/// Writes tensors one after the other into one file: first all specs, then the data in the order of
/// the specs. (In the file, wide types come first, so that every tensor is aligned to its element:
/// other readers map the file.) The file appears under its name only when complete: output.h.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const fs::path& path, const std::map<std::string, std::string>& metadata,
                    const std::vector<std::pair<std::string, TensorEntry>>& specs);
  /// Into a file that the caller commits: finish() only seals it.
  SafetensorsWriter(OutputFile& file, const std::map<std::string, std::string>& metadata,
                    const std::vector<std::pair<std::string, TensorEntry>>& specs);
  ~SafetensorsWriter();  // removes the temporary file unless finished
  void append(const HostTensor& tensor);
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// --- traces and batches -------------------------------------------------------------------------

/// Reads a trace file (docs/formats.md 4): metadata checked, names known, shapes and dtype classes
/// right for its case, keys that are not there with their defaults, rope and index layouts
/// converted to the canonical ones, sketched taps in `sketches`. Throws Error (artefact). Tensors
/// come in execution order. After a conversion the metadata say `rope_layout` = interleaved and
/// keep the file's word as `rope_layout_stored` (`index_layout` alike). `dtap.TAP` are in `slopes`,
/// with zeros for the taps of metadata `slopes_none`. `step.` tensors are not read: metadata
/// `unjudged_tensors` lists them. int64 decisions become int32. Values may
/// be NaN; there may be no tensor at all.
/// One rank's part of a trace is refused: read_trace_part.
Trace read_trace(const fs::path& path);

/// Where one rank's tensor stands in the whole one.
struct Placement {
  enum class Kind { replicated, partial, piece };  // the whole; a summand of it; a part of it
  Kind kind = Kind::replicated;
  int64_t dim = 0, offset = 0;  // of a piece: its first index along that axis
};
/// A trace file that may be one rank's. `world` 1: it is whole.
struct TracePart {
  Trace trace;
  int64_t rank = 0, world = 1;
  std::map<std::string, Placement> placements;  // by tensor, of those that are not replicated
};
/// As read_trace; the shapes are those of the rank's pieces.
TracePart read_trace_part(const fs::path& path);
/// The case of a trace that was read: its metadata's case, with mask_given as its metadata say.
Case case_of_trace(const Trace& trace);
void write_trace(const fs::path& path, const Trace& trace);

/// The members of a JSON object as texts, in their order.
using Facts = std::vector<std::pair<std::string, std::string>>;
/// Throws Error (artefact) when it is no JSON object; `where` names the place.
Facts facts_of(const std::string& json, const std::string& where);

/// What a candidate says of itself besides its taps.
struct CandidateNotes {
  struct LoadedWeights {  // its parameters after loading, compared with the checkpoint bit for bit
    int64_t identical = 0;
    std::vector<std::string> different, missing, unexpected;
    bool all_there() const { return different.empty() && missing.empty(); }
  };
  struct Failure {  // it crashed
    std::string where, message, shapes;
    std::string raised_at;  // FILE:LINE; "" where the file does not say
  };
  std::optional<LoadedWeights> weights;
  std::optional<Failure> failure;
  std::vector<std::string> missing_taps;
  std::vector<std::string> derived_taps;      // computed by the dump, not by the implementation
  Facts producer;                             // who made it, with what
  std::vector<std::string> slopes_none;       // taps that back-propagation passed by, in its order
  std::vector<std::string> unjudged_tensors;  // of read_trace: single steps
};
/// Reads the metadata `weights_loaded`, `failure`, `missing_taps`, `derived_taps`, `slopes_none`
/// and `producer`. Throws Error (artefact) when one is no such JSON.
CandidateNotes candidate_notes(const Trace& trace, const std::string& where);
/// Reads the file of `--batch`: input_ids and, if wanted, attention_mask and labels. The digest is
/// the sha256 of the file.
Batch read_batch(const fs::path& path, const ModelConfig& config);
/// The batch of this case: that of `file` where one is given, else the synthetic one. Throws Error
/// (artefact) when the case names a batch and it is not this file; `where` is what names the case.
Batch batch_of_case(const Case& c, const std::optional<fs::path>& file, const std::string& where);

// --- checkpoints --------------------------------------------------------------------------------

/// Opens a checkpoint directory: sharded or single safetensors, or the inference demo's files of
/// ranks. Names, shapes, dtypes and FP8 scales are checked against the config at once: all missing,
/// unexpected and wrong-shaped names in one Error. Fused and unfused experts, both styles of names
/// and FP8 in blocks of config.fp8 are read; MTP layers are left out, and notes() says so. Stored
/// float64 is returned as float64, FP8 as code * scale in float32, everything else as float32
/// (exact). identity(): `synthetic:SEED` when every tensor starts as the synthetic one of
/// dsv32_case.json does (seed 1 without that file), else "sha256:" of the whole model as in
/// docs/formats.md 1: in sorted name order, each unfused name and the 32 bytes of the sha256 of its
/// little-endian float32 values. The digest is made when it is first asked for: it reads everything
/// once. `needed`: the tensors that will be asked for, where others may be missing: of a checkpoint
/// that holds some layers alone; empty: all of the model.
std::unique_ptr<WeightSource> open_checkpoint(const fs::path& dir, const ModelConfig& config,
                                              const std::vector<WeightSpec>& needed = {});

/// How `weights make` writes a model: in Hugging Face's layout as it is (`plain`) or with FP8
/// linear layers, or in one file under the inference demo's names (FP8 where the case's weights
/// are).
enum class CheckpointFormat { plain, fp8, demo };

struct MakeCheckpointOptions {
  int64_t shard_bytes = int64_t{1} << 30;
  DType dtype = DType::bfloat16;                // of what is not FP8
  std::optional<CheckpointFormat> format = {};  // fp8 where the case's weights are, else plain
  /// The tensors to write, in the model's order; empty: all of them.
  std::vector<WeightSpec> only = {};
  std::optional<int> config_style = {};  // 4 or 5; the case's own by default
  /// Called before each shard with a short text; may throw to stop.
  std::function<void(const std::string&)> progress = {};
};
/// Writes the synthetic checkpoint of a case in Hugging Face layout: config.json,
/// model-0000i-of-0000n.safetensors, index; and dsv32_case.json: the keys of case_json plus `name`
/// and `mask` (given or none). Memory: one tensor. e_score_correction_bias is float32, as released.
/// Format fp8 makes the case one of synthetic-fp8 weights (docs/formats.md 7). A folder that holds
/// another checkpoint is refused (usage).
void make_checkpoint(const Case& c, const fs::path& dir, const MakeCheckpointOptions& options);

struct CheckpointReport {
  bool good = false;
  std::string text;  // for people: counts, then every complaint on a line of its own
};
/// Does what `weights check DIR` asks for: checks names, shapes, dtypes, scales and holes against
/// DIR/config.json (an Error when they are wrong). `full`: then every byte is read: values are
/// finite, those of dsv32_case.json if it is there, what several ranks hold is the same; and the
/// digest of the model is told (as WeightSource::identity). `progress` is called before each tensor
/// and may throw to stop. Memory: one tensor.
CheckpointReport check_checkpoint(const fs::path& dir, bool full,
                                  const std::function<void(const std::string&)>& progress = {});

// --- adapters -----------------------------------------------------------------------------------

/// A LoRA adapter as peft keeps it: adapter_config.json and adapter_model.safetensors in a folder.
struct Adapter {
  std::vector<LoraModule> modules;            // in the order of lora_modules
  std::map<std::string, HostTensor> tensors;  // a_name() and b_name() of every module
  std::vector<std::string> warnings;          // dropout, targets and fields that say nothing here
};
/// What an adapter's user counts on.
struct AdapterDemand {
  std::optional<int64_t> rank = {};
  std::optional<double> scale = {};  // alpha / rank
};
/// Reads an adapter. Each target of the config must have its pair in the file and nothing else may
/// be there; ranks, shapes and dtypes are checked, values are finite. Stored float64 stays, every
/// other float type becomes float32 (exact). Settings that would change the function (DoRA, rsLoRA,
/// biases, ...) are refused; dropout is a warning, because it is random.
Adapter read_adapter(const fs::path& dir, const ModelConfig& config,
                     const AdapterDemand& demand = {});
/// Writes the tensors as they are, under peft's names.
void write_adapter(const fs::path& dir, const ModelConfig& config, const Adapter& adapter);

// --- whole files --------------------------------------------------------------------------------

/// As in output.h: whole or not at all, through links, never in place of a device; `-` is standard
/// output. Throws Error (environment).
void write_file(const fs::path& path, const std::string& content);
/// Several that change together or not at all, in this order.
void write_files(const std::vector<std::pair<fs::path, std::string>>& files);
/// Throws Error (environment) unless write_file could write there now. Leaves nothing.
void probe_output(const fs::path& path);
/// `-`, /dev/stdout, or a link to it.
bool is_standard_output(const fs::path& path);
/// Two paths to one file: the same device and inode or, as long as there is none, the same place.
/// A character device holds nothing and is never the same.
bool same_file(const fs::path& a, const fs::path& b);
/// Removes what this process has half written, when it must end at once. Safe in any thread.
void remove_temporaries();
/// Makes the folder and its parents. Throws Error (environment) when it cannot.
void make_directory(const fs::path& directory);
/// Throws Error (artefact) when it cannot be read or is larger than `limit`.
std::string read_file(const fs::path& path, uint64_t limit = uint64_t{1} << 30);
/// The sha256 of these bytes in lower-case hex.
std::string sha256_hex(const void* data, size_t size);
std::string sha256_file(const fs::path& path);

}  // namespace dsv32::io
