#include "src/io/checkpoint/match.h"

#include <algorithm>
#include <cmath>

#include "src/io/checkpoint/names.h"
#include "src/io/text.h"
#include "src/model/weights.h"

namespace dsv32::io {
namespace {

constexpr std::string_view kE4m3 = "F8_E4M3", kE8m0 = "F8_E8M0";

/// A tensor of a file, and whether something took it.
struct Stored {
  const SafetensorsFile* file;
  std::string name;  // in the file
  const TensorEntry* entry;
  int64_t rank;
  bool used = false;
};

bool is_scale(const std::string& name) { return name.ends_with(kScaleSuffix); }

/// Layers behind the last one that hold what only the extra prediction (MTP) layer has.
/// docs/spec.md 1.11.
std::set<int64_t> prediction_layers(const CheckpointFiles& files, const ModelConfig& config) {
  std::set<int64_t> layers;
  for (const SafetensorsFile& file : files.files) {
    for (const auto& [name, entry] : file.tensors()) {
      const auto layer = weight_layer(released_name(name).value_or(name));
      if (!layer || *layer < config.num_hidden_layers) continue;
      for (const char* own : {".eh_proj.", ".enorm.", ".hnorm."})
        if (name.find(own) != std::string::npos) layers.insert(*layer);
    }
  }
  return layers;
}

class Matcher {
 public:
  Matcher(const CheckpointFiles& files, const ModelConfig& config, const Fp8Config& format,
          const std::set<std::string>& needed)
      : ranks_(files.ranks), config_(config), format_(format), needed_(needed) {
    const std::set<int64_t> beyond = prediction_layers(files, config);
    std::map<int64_t, int64_t> left_out;
    int64_t rank = 0;
    for (const SafetensorsFile& file : files.files) {
      for (const auto& [stored, entry] : file.tensors()) {
        const std::string name = released_name(stored).value_or(stored);
        const auto layer = weight_layer(name);
        if (layer && beyond.contains(*layer)) {
          ++left_out[*layer];
        } else {
          stored_[name].push_back({&file, stored, &entry, rank});
        }
      }
      ++rank;
    }
    for (const auto& [number, tensors] : left_out)
      match_.notes.push_back("layer " + std::to_string(number) +
                             " predicts further tokens (MTP) and is no part of the model: its " +
                             std::to_string(tensors) + " tensors are left out");
  }

  Match match() {
    for (const WeightSpec& spec : weight_specs(config_)) match_one(spec);
    for (const auto& [name, all] : stored_) {
      if (all.front().used) continue;
      (is_scale(name) ? findings().scales_unused : findings().unexpected)
          .push_back(all.front().name);
    }
    return std::move(match_);
  }

 private:
  Findings& findings() { return match_.findings; }
  bool is_needed(const std::string& name) const {
    return needed_.empty() || needed_.contains(name);
  }

  void match_one(const WeightSpec& spec) {
    const auto found = stored_.find(spec.name);
    if (found != stored_.end()) {
      match_.sources.emplace(spec.name, ranks_ > 1 ? rank_pieces(spec, found->second)
                                                   : Source{whole_piece(spec, found->second)});
    } else if (const auto expert = parse_expert(spec.name);
               (!expert || !match_fused(spec, *expert)) && is_needed(spec.name)) {
      findings().missing.push_back(spec.name);
    }
  }

  Piece whole_piece(const WeightSpec& spec, std::vector<Stored>& all) {
    if (all.size() > 1)
      findings().twice.push_back(spec.name + " in " + all[0].file->path().filename().string() +
                                 " and " + all[1].file->path().filename().string());
    return piece(spec, all.front(), spec.shape);
  }

  /// The parts of the demo's ranks.
  Source rank_pieces(const WeightSpec& spec, std::vector<Stored>& all) {
    const RankSplit split = rank_split(spec.name);
    if (split == RankSplit::expert) return {whole_piece(spec, all)};
    if (static_cast<int64_t>(all.size()) != ranks_)
      findings().missing.push_back(spec.name + " in " +
                                   std::to_string(ranks_ - static_cast<int64_t>(all.size())) +
                                   " of " + std::to_string(ranks_) + " ranks");
    if (split == RankSplit::none) {
      Source pieces;
      for (Stored& stored : all) pieces.push_back(piece(spec, stored, spec.shape));
      return {pieces.front()};
    }
    const size_t axis = split == RankSplit::rows ? 0 : 1;
    Shape part = spec.shape;
    part[axis] /= ranks_;
    if (part[axis] * ranks_ != spec.shape[axis])
      findings().misshapen.push_back(spec.name + " " + to_string(spec.shape) + " in " +
                                     std::to_string(ranks_) + " equal parts");
    Source pieces;
    for (Stored& stored : all) {
      pieces.push_back(piece(spec, stored, part));
      (axis == 0 ? pieces.back().row : pieces.back().column) = stored.rank * part[axis];
    }
    return pieces;
  }

  /// gate_up_proj [E,2I,hidden], gate first; down_proj [E,hidden,I].
  bool match_fused(const WeightSpec& spec, const ExpertName& name) {
    const bool down = name.part == "down_proj";
    const auto found = stored_.find(name.experts + (down ? "down_proj" : "gate_up_proj"));
    if (found == stored_.end()) return false;
    const int64_t E = config_.n_routed_experts, I = config_.moe_intermediate_size,
                  hidden = config_.hidden_size;
    Piece part =
        piece(spec, found->second.front(), down ? Shape{E, hidden, I} : Shape{E, 2 * I, hidden});
    part.matrix = name.expert;
    part.rows = spec.shape[0];
    part.from = name.part == "up_proj" ? I : 0;
    match_.sources.emplace(spec.name, Source{part});
    return true;
  }

  /// A stored matrix, or a stack of them, that should have this shape. What is wrong is noted once.
  Piece piece(const WeightSpec& spec, Stored& stored, const Shape& shape) {
    const TensorEntry& entry = *stored.entry;
    const bool first = !stored.used, fp8 = entry.stored == kE4m3;
    if (first && entry.shape != shape)
      findings().misshapen.push_back(stored.name + " " + to_string(entry.shape) + " instead of " +
                                     to_string(shape));
    const bool readable =
        fp8 ? is_fp8_weight(spec.name) : entry.readable && is_floating(entry.dtype);
    if (first && !readable)
      findings().wrong_type.push_back(stored.name + " " + std::string(entry.stored));
    stored.used = true;
    const size_t axis = shape.size() == 3 ? 1 : 0;  // of a stack, the second one is the rows
    const int64_t rows = shape[axis], columns = shape.size() == 1 ? 1 : shape[axis + 1];
    Piece out{.file = stored.file,
              .name = stored.name,
              .stored_rows = rows,
              .columns = columns,
              .rows = rows};
    match_.has_fp8 = match_.has_fp8 || fp8;
    if (fp8 && readable) find_scale(spec, stored, shape, first, out);
    return out;
  }

  /// Its scales, if they are there.
  void find_scale(const WeightSpec& spec, const Stored& stored, const Shape& shape, bool first,
                  Piece& piece) {
    const std::string released =
        released_name(stored.name).value_or(stored.name) + std::string(kScaleSuffix);
    const auto found = stored_.find(released);
    const auto of_rank = [&](const Stored& scale) { return scale.rank == stored.rank; };
    std::vector<Stored> none;
    std::vector<Stored>& all = found == stored_.end() ? none : found->second;
    // A scale may lie in another shard than its codes; of ranks each has its own.
    const auto scale = ranks_ > 1 ? std::find_if(all.begin(), all.end(), of_rank) : all.begin();
    if (scale == all.end()) {
      if (first) findings().scales_missing.push_back(stored.name);
      return;
    }
    scale->used = all.front().used = true;
    if (first) check_scale(spec, *scale, shape, piece);
    if (first && ranks_ <= 1 && all.size() > 1) findings().twice.push_back(scale->name);
    piece.scale = scale->name;
    piece.scale_file = scale->file;
  }

  void check_scale(const WeightSpec& spec, const Stored& scale, const Shape& shape,
                   const Piece& piece) {
    Shape expected = fp8_scale_shape({piece.stored_rows, piece.columns}, format_);
    if (shape.size() == 3) expected.insert(expected.begin(), shape[0]);
    const TensorEntry& entry = *scale.entry;
    if (entry.shape != expected) {
      findings().misshapen.push_back(scale.name + " " + to_string(entry.shape) + " instead of " +
                                     to_string(expected));
    } else if (entry.stored != kE8m0 && entry.stored != "F32") {
      findings().wrong_type.push_back(scale.name + " " + std::string(entry.stored) +
                                      " instead of F32 or F8_E8M0");
    } else if (is_needed(spec.name)) {
      check_scale_values(scale, numel(expected));
    }
  }

  void check_scale_values(const Stored& scale, int64_t count) {
    const HostTensor values = scale.entry->stored == kE8m0
                                  ? scale.file->read_bytes(scale.name, 0, {count})
                                  : scale.file->read_range(scale.name, 0, {count});
    for (int64_t i = 0; i < count; ++i) {
      const double value = values.dtype() == DType::uint8
                               ? e8m0_to_float(static_cast<uint8_t>(values.at(i)))
                               : values.at(i);
      if (std::isfinite(value) && value >= 0) continue;
      findings().scales_bad.push_back(scale.name + " element " + std::to_string(i) + " = " +
                                      std::to_string(value));
      return;
    }
  }

  int64_t ranks_;
  const ModelConfig& config_;
  const Fp8Config& format_;
  const std::set<std::string>& needed_;
  std::map<std::string, std::vector<Stored>> stored_;  // by released name
  Match match_;
};

}  // namespace

std::string complaints(const Findings& f) {
  std::string out;
  const auto add = [&out](const char* title, const std::vector<std::string>& names) {
    if (!names.empty()) out += (out.empty() ? "" : "; ") + std::string(title) + " " + listed(names);
  };
  add("missing", f.missing);
  add("unexpected", f.unexpected);
  add("twice", f.twice);
  add("wrong shape", f.misshapen);
  add("wrong dtype", f.wrong_type);
  add("FP8 without scales", f.scales_missing);
  add("scales that no FP8 tensor uses", f.scales_unused);
  add("scales that are no finite factors", f.scales_bad);
  return out;
}

Match match_checkpoint(const CheckpointFiles& files, const ModelConfig& config,
                       const Fp8Config& format, const std::set<std::string>& needed) {
  return Matcher(files, config, format, needed).match();
}

HostTensor read_scales(const Piece& piece, const Fp8Config& format, int64_t begin, int64_t end) {
  const Shape grid = fp8_scale_shape({piece.stored_rows, piece.columns}, format);
  const int64_t first = (piece.matrix * grid[0] + begin) * grid[1];
  const Shape shape = {end - begin, grid[1]};
  const SafetensorsFile& file = *piece.scale_file;
  if (file.tensors().at(piece.scale).stored != kE8m0)
    return file.read_range(piece.scale, first, shape);
  const HostTensor exponents = file.read_bytes(piece.scale, first, shape);
  HostTensor scales(DType::float32, shape);
  const auto from = exponents.data<uint8_t>();
  std::transform(from.begin(), from.end(), scales.data<float>().begin(), e8m0_to_float);
  return scales;
}

}  // namespace dsv32::io
