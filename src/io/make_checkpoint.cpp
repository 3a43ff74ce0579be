#include <algorithm>
#include <cstdio>

#include "src/io/cases.h"
#include "src/io/checkpoint.h"
#include "src/io/config.h"
#include "src/io/file.h"
#include "src/io/json.h"
#include "src/io/output.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

struct Shard {
  std::string name;
  std::vector<WeightSpec> specs;
};

/// The released checkpoints keep the correction bias in float32.
DType stored_dtype(const WeightSpec& spec, DType dtype) {
  return is_buffer(spec.name) ? DType::float32 : dtype;
}

int64_t stored_bytes(const WeightSpec& spec, DType dtype) {
  return numel(spec.shape) * item_size(stored_dtype(spec, dtype));
}

std::string shard_name(size_t index, size_t count) {
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

/// Fills shards in the model's order; a tensor larger than a shard gets one of its own.
std::vector<Shard> split(const ModelConfig& config, const MakeCheckpointOptions& options) {
  std::vector<Shard> shards(1);
  int64_t filled = 0;
  for (const WeightSpec& spec : options.only.empty() ? weight_specs(config) : options.only) {
    const int64_t bytes = stored_bytes(spec, options.dtype);
    if (!shards.back().specs.empty() && filled + bytes > options.shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().specs.push_back(spec);
    filled += bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i) shards[i].name = shard_name(i, shards.size());
  return shards;
}

constexpr char kConfigFile[] = "config.json";

bool is_model_file(const std::string& name) {
  return name.starts_with("model") && (name.ends_with(".safetensors") || name == kIndexFile);
}

/// What `weights make` writes, and nothing else.
bool is_ours(const std::string& name) {
  return is_model_file(name) || name == kConfigFile || name == kCaseFile;
}

/// The files that an earlier `weights make` left. Refuses a folder with a checkpoint, or only a
/// config.json, of other origin.
std::vector<fs::path> older_files(const fs::path& dir) {
  std::vector<fs::path> old;
  for (const auto& entry : fs::directory_iterator(dir))
    if (is_ours(entry.path().filename().string())) old.push_back(entry.path());
  if (old.empty() || fs::exists(dir / kCaseFile)) return old;
  throw Error(ExitCode::usage, {.where = dir.string(),
                                .what = "output folder",
                                .expected = "an empty folder, or one that weights make wrote",
                                .got = "a checkpoint of other origin (" +
                                       printable(old.front().filename().string()) + ")"});
}

void write_shard(const Shard& shard, OutputFile& file, const WeightSource& weights, DType dtype) {
  std::vector<std::pair<std::string, TensorEntry>> specs;
  for (const WeightSpec& spec : shard.specs)
    specs.push_back({spec.name, {.dtype = stored_dtype(spec, dtype), .shape = spec.shape}});
  // transformers before 5 refuses a file that does not say this.
  SafetensorsWriter writer(file, {{"format", "pt"}}, specs);
  for (const WeightSpec& spec : shard.specs)
    writer.append(weights.load(spec).cast(stored_dtype(spec, dtype)));
  writer.finish();
}

std::string index_text(const std::vector<Shard>& shards, int64_t total) {
  Json map = Json::object();
  for (const Shard& shard : shards)
    for (const WeightSpec& spec : shard.specs) map[spec.name] = shard.name;
  return Json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n";
}

/// Shards of an older checkpoint that has more or fewer of them: no mixture can be opened.
void remove_superfluous(const std::vector<fs::path>& older, const std::vector<Shard>& shards) {
  for (const fs::path& path : older) {
    const std::string name = path.filename().string();
    const bool kept = std::any_of(shards.begin(), shards.end(),
                                  [&](const Shard& shard) { return shard.name == name; });
    if (is_model_file(name) && name != kIndexFile && !kept) fs::remove(path);
  }
}

std::string case_text(const Case& c) {
  Json json = parse_json(case_json(c), "case");
  json["name"] = c.name;
  json["mask"] = c.mask_given ? "given" : "none";
  return canonical_json(json) + "\n";
}

/// In the style of the case, with fields of its overrides that change nothing, as they are.
std::string config_text(const Case& c, const MakeCheckpointOptions& options) {
  const std::string dtype(to_string(options.dtype));
  const bool newer = options.config_style.value_or(c.config_style) == 5;
  Json config = newer ? config_to_json_5(c.config, dtype) : config_to_json(c.config, dtype);
  const Json overrides = parse_json(c.overrides_json, "overrides");
  for (const auto& [field, value] : overrides.items())
    if (is_ignored_config_field(field) && !config.contains(field)) config[field] = value;
  return config.dump(2) + "\n";
}

}  // namespace

void make_checkpoint(const Case& c, const fs::path& dir, const MakeCheckpointOptions& options) {
  const std::vector<Shard> shards = split(c.config, options);
  int64_t total = 0;
  for (const Shard& shard : shards)
    for (const WeightSpec& spec : shard.specs) total += stored_bytes(spec, options.dtype);
  make_directory(dir);
  const std::vector<fs::path> older = older_files(dir);
  remove_dead_temporaries(dir, is_ours);
  require_space(dir, static_cast<uint64_t>(total));
  const SyntheticWeights weights(c);
  OutputSet files;
  // First the mark of our own folders, last the index: without it nobody takes half a checkpoint
  // for a whole one.
  files.put(dir / kCaseFile, case_text(c));
  files.put(dir / kConfigFile, config_text(c, options));
  for (const Shard& shard : shards) {
    if (options.progress) options.progress(shard.name);
    write_shard(shard, files.add(dir / shard.name), weights, options.dtype);
  }
  files.put(dir / kIndexFile, index_text(shards, total));
  files.commit();
  remove_superfluous(older, shards);
}

}  // namespace dsv32::io
