#include <algorithm>
#include <cstdio>

#include "src/io/cases.h"
#include "src/io/checkpoint/files.h"
#include "src/io/checkpoint/names.h"
#include "src/io/config.h"
#include "src/io/file.h"
#include "src/io/json.h"
#include "src/io/output.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

/// A tensor of the files.
using Entry = std::pair<std::string, TensorEntry>;

struct Shard {
  std::string name;
  std::vector<WeightSpec> specs;
};

/// How tensors are kept.
struct Layout {
  DType dtype = DType::bfloat16;
  std::optional<Fp8Config> fp8;  // of the linear layers
  bool demo_names = false;

  /// The released checkpoints keep the correction bias in float32.
  DType plain_dtype(const WeightSpec& spec) const {
    return is_buffer(spec.name) ? DType::float32 : dtype;
  }
  std::string name(const std::string& released) const {
    return demo_names ? demo_name(released) : released;
  }
  /// A tensor, or its codes and scales.
  std::vector<Entry> entries(const WeightSpec& spec) const {
    if (!fp8 || !is_fp8_weight(spec.name))
      return {{name(spec.name), {.dtype = plain_dtype(spec), .shape = spec.shape}}};
    return {{name(spec.name), {.dtype = DType::uint8, .shape = spec.shape, .stored = "F8_E4M3"}},
            {name(spec.name + std::string(kScaleSuffix)),
             {.dtype = DType::float32, .shape = fp8_scale_shape(spec.shape, *fp8)}}};
  }
  int64_t bytes(const WeightSpec& spec) const {
    int64_t sum = 0;
    for (const auto& [name, entry] : entries(spec))
      sum += numel(entry.shape) * item_size(entry.dtype);
    return sum;
  }
};

/// The case whose weights are written, which a format may turn into one of FP8 weights.
Case case_of_format(Case c, const MakeCheckpointOptions& options) {
  const CheckpointFormat format =
      options.format.value_or(c.fp8 ? CheckpointFormat::fp8 : CheckpointFormat::plain);
  if (format == CheckpointFormat::fp8) c.fp8 = true;
  if (c.fp8 && !c.config.fp8) c.config.fp8.emplace();
  if (format == CheckpointFormat::plain && c.fp8 && options.dtype != DType::float32)
    throw Error(ExitCode::usage, {.where = "weights make",
                                  .what = "dtype of FP8 weights in format bf16",
                                  .expected = "float32, which holds their dequantised values",
                                  .got = std::string(to_string(options.dtype)),
                                  .hint = "--dtype float32, or --format fp8"});
  return c;
}

Layout layout_of(const Case& c, const MakeCheckpointOptions& options) {
  const bool plain = options.format == CheckpointFormat::plain;
  return {.dtype = options.dtype,
          .fp8 = c.fp8 && !plain ? c.config.fp8 : std::nullopt,
          .demo_names = options.format == CheckpointFormat::demo};
}

std::string shard_name(size_t index, size_t count) {
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

/// Fills shards in the model's order; a tensor larger than a shard gets one of its own. The demo
/// takes one file per rank.
std::vector<Shard> split(const ModelConfig& config, const MakeCheckpointOptions& options,
                         const Layout& layout) {
  std::vector<Shard> shards(1);
  int64_t filled = 0;
  for (const WeightSpec& spec : options.only.empty() ? weight_specs(config) : options.only) {
    const int64_t bytes = layout.bytes(spec);
    const bool full = filled + bytes > options.shard_bytes && !layout.demo_names;
    if (!shards.back().specs.empty() && full) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().specs.push_back(spec);
    filled += bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i)
    shards[i].name = layout.demo_names ? demo_shard_name(0, 1) : shard_name(i, shards.size());
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

void write_shard(const Shard& shard, OutputFile& file, const WeightSource& weights,
                 const Layout& layout) {
  std::vector<Entry> entries;
  for (const WeightSpec& spec : shard.specs)
    for (Entry& entry : layout.entries(spec)) entries.push_back(std::move(entry));
  // transformers before 5 refuses a file that does not say this.
  SafetensorsWriter writer(file, {{"format", "pt"}}, entries);
  for (const WeightSpec& spec : shard.specs) {
    if (layout.fp8 && is_fp8_weight(spec.name)) {
      const std::optional<Fp8Matrix> matrix = weights.load_fp8(spec);
      writer.append(matrix->codes);
      writer.append(matrix->scales);
    } else {
      writer.append(weights.load(spec).cast(layout.plain_dtype(spec)));
    }
  }
  writer.finish();
}

std::string index_text(const std::vector<Shard>& shards, const Layout& layout, int64_t total) {
  Json map = Json::object();
  for (const Shard& shard : shards)
    for (const WeightSpec& spec : shard.specs)
      for (const auto& [name, entry] : layout.entries(spec)) map[name] = shard.name;
  return Json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n";
}

/// Shards of an older checkpoint that has more or fewer of them: no mixture can be opened.
void remove_superfluous(const std::vector<fs::path>& older, const std::vector<Shard>& shards,
                        const Layout& layout) {
  for (const fs::path& path : older) {
    const std::string name = path.filename().string();
    const bool kept = std::any_of(shards.begin(), shards.end(),
                                  [&](const Shard& shard) { return shard.name == name; });
    const bool indexed = name == kIndexFile && !layout.demo_names;
    if (is_model_file(name) && !indexed && !kept) fs::remove(path);
  }
}

std::string case_text(const Case& c) {
  Json json = parse_json(case_json(c), "case");
  json["name"] = c.name;
  json["mask"] = c.mask_given ? "given" : "none";
  return canonical_json(json) + "\n";
}

/// In the style of the case, with fields of its overrides that change nothing, as they are.
std::string config_text(const Case& c, const MakeCheckpointOptions& options, const Layout& layout) {
  const std::string dtype(to_string(options.dtype));
  const bool newer = options.config_style.value_or(c.config_style) == 5;
  ModelConfig stored = c.config;
  stored.fp8 = layout.fp8;
  Json config = newer ? config_to_json_5(stored, dtype) : config_to_json(stored, dtype);
  const Json overrides = parse_json(c.overrides_json, "overrides");
  for (const auto& [field, value] : overrides.items())
    if (is_ignored_config_field(field) && !config.contains(field)) config[field] = value;
  return config.dump(2) + "\n";
}

}  // namespace

void make_checkpoint(const Case& asked, const fs::path& dir, const MakeCheckpointOptions& options) {
  const Case c = case_of_format(asked, options);
  const Layout layout = layout_of(c, options);
  const std::vector<Shard> shards = split(c.config, options, layout);
  int64_t total = 0;
  for (const Shard& shard : shards)
    for (const WeightSpec& spec : shard.specs) total += layout.bytes(spec);
  make_directory(dir);
  const std::vector<fs::path> older = older_files(dir);
  remove_dead_temporaries(dir, is_ours);
  require_space(dir, static_cast<uint64_t>(total));
  const SyntheticWeights weights(c);
  OutputSet files;
  // First the mark of our own folders, last the index: without it nobody takes half a checkpoint
  // for a whole one.
  files.put(dir / kCaseFile, case_text(c));
  files.put(dir / kConfigFile, config_text(c, options, layout));
  for (const Shard& shard : shards) {
    if (options.progress) options.progress(shard.name);
    write_shard(shard, files.add(dir / shard.name), weights, layout);
  }
  if (!layout.demo_names) files.put(dir / kIndexFile, index_text(shards, layout, total));
  files.commit();
  remove_superfluous(older, shards, layout);
}

}  // namespace dsv32::io
