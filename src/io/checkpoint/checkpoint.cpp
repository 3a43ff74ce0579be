#include <algorithm>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "src/io/cases.h"
#include "src/io/checkpoint/files.h"
#include "src/io/checkpoint/match.h"
#include "src/io/config.h"
#include "src/io/sha256.h"
#include "src/io/text.h"
#include "src/io/volume/read_ahead.h"

namespace dsv32::io {
namespace {

/// Layers of which every tensor is there: "0 3 60"; "" when that is all of them or none.
std::string whole_layers(const Sources& sources, const ModelConfig& config) {
  std::string list;
  int64_t whole = 0;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::vector<WeightSpec> specs = layer_weight_specs(config, layer);
    if (!std::all_of(specs.begin(), specs.end(),
                     [&](const WeightSpec& spec) { return sources.contains(spec.name); }))
      continue;
    ++whole;
    list += (list.empty() ? "" : ",") + std::to_string(layer);
  }
  return whole == config.num_hidden_layers ? "" : list;
}

void require_clean(const Findings& findings, const fs::path& dir, const ModelConfig& config,
                   const std::string& layers) {
  const std::string got = complaints(findings);
  if (got.empty()) return;
  const bool fp8 = !findings.scales_missing.empty() || !findings.scales_unused.empty();
  refuse({.where = dir.string(),
          .what = "tensors",
          .expected = "names and shapes of config " + printable(config.name) +
                      ", in F64, F32, BF16, F16 or, with scales, F8_E4M3",
          .got = got,
          .hint = fp8 ? "a converter that drops or leaves scales gives weights that are off by a "
                        "factor per block"
                  : layers.empty() ? "is this the checkpoint of that config?"
                                   : "of its layers it has these whole: " + layers + " (--layers " +
                                         layers + ")"});
}

std::set<std::string> names_of(const std::vector<WeightSpec>& specs) {
  std::set<std::string> names;
  for (const WeightSpec& spec : specs) names.insert(spec.name);
  return names;
}

/// How the checkpoint is quantised: as its own config.json says, else as the model's config, else
/// as released.
Fp8Config fp8_format(const fs::path& dir, const ModelConfig& config) {
  constexpr uint64_t kLimit = uint64_t{1} << 20;
  const fs::path path = dir / "config.json";
  std::error_code error;
  if (fs::exists(path, error)) {
    const Json json = parse_json(read_file(path, kLimit), path.string());
    std::vector<std::string> warnings;
    const auto own = json.is_object() ? fp8_from_json(json, path.string(), warnings) : std::nullopt;
    if (own) return *own;
  }
  return config.fp8.value_or(Fp8Config());
}

/// The same values under another shape.
HostTensor reshaped(const HostTensor& tensor, const Shape& shape) {
  if (tensor.shape() == shape) return tensor;
  HostTensor out(tensor.dtype(), shape);
  std::copy_n(tensor.raw(), tensor.bytes(), out.raw());
  return out;
}

/// Puts a matrix into a larger one of its dtype.
void place(const HostTensor& part, int64_t row, int64_t column, HostTensor& whole) {
  const int64_t item = item_size(part.dtype()), width = whole.shape().at(1) * item;
  const int64_t bytes = part.shape().at(1) * item;
  for (int64_t i = 0; i < part.shape().at(0); ++i)
    std::copy_n(part.raw() + i * bytes, bytes, whole.raw() + (row + i) * width + column * item);
}

class Checkpoint : public WeightSource {
 public:
  Checkpoint(const fs::path& dir, const ModelConfig& config, const std::vector<WeightSpec>& needed)
      : files_(open_checkpoint_files(dir)),
        dir_(dir),
        format_(fp8_format(dir, config)),
        specs_(needed.empty() ? weight_specs(config) : needed),
        match_(match_checkpoint(files_, config, format_, names_of(needed))) {
    require_clean(match_.findings, dir, config, whole_layers(match_.sources, config));
    const auto c = case_of_checkpoint(dir);
    if (c) synthetic_ = SyntheticWeights(*c);
    for (SafetensorsFile& file : files_.files) file.read_through(ahead_.get());
  }

  HostTensor load(const WeightSpec& spec) const override { return read(spec, 0, spec.shape.at(0)); }

  HostTensor load_rows(const WeightSpec& spec, int64_t begin, int64_t end) const override {
    shape_of_rows(spec, begin, end);
    return read(spec, begin, end);
  }

  std::optional<Fp8Matrix> load_fp8(const WeightSpec& spec) const override {
    const Source& source = source_of(spec.name);
    if (source.front().scale.empty()) return std::nullopt;
    Fp8Matrix out{.codes = HostTensor(DType::uint8, spec.shape),
                  .scales = HostTensor(DType::float32, fp8_scale_shape(spec.shape, format_)),
                  .block_rows = format_.block_rows,
                  .block_columns = format_.block_columns};
    for (const Piece& piece : source) put_codes(spec, piece, out);
    return out;
  }

  void expect(const std::vector<WeightSpec>& now,
              const std::vector<WeightSpec>& then) const override {
    ahead_->expect(ranges_of(now), ranges_of(then));
  }

  std::optional<Fp8Config> fp8() const override {
    return match_.has_fp8 ? std::optional(format_) : std::nullopt;
  }

  std::vector<std::string> notes() const override { return match_.notes; }

  std::string identity() const override {
    std::call_once(identified_, [this] {
      identity_ = starts_synthetic() ? synthetic_.identity() : "sha256:" + digest();
    });
    return identity_;
  }

 private:
  std::vector<FileRange> ranges_of(const std::vector<WeightSpec>& specs) const {
    std::vector<FileRange> ranges;
    for (const WeightSpec& spec : specs) {
      for (const Piece& piece : source_of(spec.name)) {
        const int64_t first = (piece.matrix * piece.stored_rows + piece.from) * piece.columns;
        ranges.push_back(piece.file->range(piece.name, first, piece.rows * piece.columns));
        if (!piece.scale.empty())
          ranges.push_back(piece.scale_file->range(
              piece.scale, 0, numel(piece.scale_file->tensors().at(piece.scale).shape)));
      }
    }
    return ranges;
  }

  const Source& source_of(const std::string& name) const {
    const auto it = match_.sources.find(name);
    if (it == match_.sources.end())
      refuse({.where = dir_.string(),
              .what = "tensor",
              .expected = name,
              .got = "no tensor of that name"});
    return it->second;
  }

  /// Rows [begin, end) of a tensor, float64 where it is stored so, else float32.
  HostTensor read(const WeightSpec& spec, int64_t begin, int64_t end) const {
    const Source& source = source_of(spec.name);
    HostTensor out;
    for (const Piece& piece : source) {
      const int64_t first = std::max(begin, piece.row);
      const int64_t last = std::max(first, std::min(end, piece.row + piece.rows));
      const HostTensor part = rows_of(piece, first - piece.row, last - piece.row);
      if (source.size() == 1) return reshaped(part, shape_of_rows(spec, begin, end));
      if (!out.defined()) out = HostTensor(part.dtype(), shape_of_rows(spec, begin, end));
      place(part, first - begin, piece.column, out);
    }
    return out;
  }

  /// Rows [begin, end) of a piece.
  HostTensor rows_of(const Piece& piece, int64_t begin, int64_t end) const {
    const int64_t row = piece.from + begin, count = end - begin;
    const int64_t first = (piece.matrix * piece.stored_rows + row) * piece.columns;
    const Shape shape = {count, piece.columns};
    if (!piece.scale.empty()) return dequantized_rows(piece, row, first, shape);
    const HostTensor stored = piece.file->read_range(piece.name, first, shape);
    const bool wide = stored.dtype() == DType::float64 || stored.dtype() == DType::float32;
    return wide ? stored : stored.cast(DType::float32);
  }

  HostTensor dequantized_rows(const Piece& piece, int64_t row, int64_t first,
                              const Shape& shape) const {
    HostTensor out(DType::float32, shape);
    if (out.numel() == 0) return out;
    const int64_t block = format_.block_rows, top = row / block;
    const HostTensor codes = piece.file->read_bytes(piece.name, first, shape);
    const HostTensor scales =
        read_scales(piece, format_, top, (row + shape[0] + block - 1) / block);
    const auto width = static_cast<size_t>(piece.columns);
    const auto across = static_cast<size_t>(scales.shape()[1]);
    for (int64_t i = 0; i < shape[0]; ++i) {
      const auto at = static_cast<size_t>(i) * width;
      const auto down = static_cast<size_t>((row + i) / block - top);
      dequantize_row(codes.data<uint8_t>().subspan(at, width),
                     scales.data<float>().subspan(down * across, across), format_.block_columns,
                     out.data<float>().subspan(at, width));
    }
    return out;
  }

  /// A piece whose blocks are blocks of the whole tensor.
  void put_codes(const WeightSpec& spec, const Piece& piece, Fp8Matrix& out) const {
    const auto [down, across] = std::pair(format_.block_rows, format_.block_columns);
    if (piece.from % down != 0 || piece.row % down != 0 || piece.column % across != 0)
      refuse({.where = dir_.string(),
              .what = piece.name + ": FP8 blocks",
              .expected = "none that parts of " + spec.name + " share with others, for fp8 mode",
              .got = "blocks of " + std::to_string(down) + " x " + std::to_string(across)});
    const int64_t first = (piece.matrix * piece.stored_rows + piece.from) * piece.columns;
    place(piece.file->read_bytes(piece.name, first, {piece.rows, piece.columns}), piece.row,
          piece.column, out.codes);
    const int64_t top = piece.from / down;
    place(read_scales(piece, format_, top, top + (piece.rows + down - 1) / down), piece.row / down,
          piece.column / across, out.scales);
  }

  /// Looks at the first row of every tensor: a synthetic value depends on its index and the width
  /// of a row only.
  bool starts_synthetic() const {
    return std::all_of(specs_.begin(), specs_.end(), [&](const WeightSpec& spec) {
      const int64_t rows = spec.shape.size() > 1 ? 1 : spec.shape[0];
      return load_rows(spec, 0, rows)
          .cast(DType::float32)
          .identical(synthetic_.load_rows(spec, 0, rows));
    });
  }

  std::string digest() const {
    std::vector<WeightSpec> sorted = specs_;
    std::sort(sorted.begin(), sorted.end(),
              [](const WeightSpec& a, const WeightSpec& b) { return a.name < b.name; });
    expect(sorted, {});
    Sha256 model;
    for (const WeightSpec& spec : sorted) {
      const HostTensor values = load(spec).cast(DType::float32);
      Sha256 tensor;
      tensor.update(values.raw(), static_cast<size_t>(values.bytes()));
      const auto bytes = tensor.bytes();
      model.update(spec.name.data(), spec.name.size());
      model.update(bytes.data(), bytes.size());
    }
    expect({}, {});
    return model.hex();
  }

  CheckpointFiles files_;
  std::unique_ptr<ReadAhead> ahead_ = std::make_unique<ReadAhead>();  // gone before the files
  fs::path dir_;
  Fp8Config format_;
  std::vector<WeightSpec> specs_;
  Match match_;
  SyntheticWeights synthetic_{1};  // of its case
  mutable std::once_flag identified_;
  mutable std::string identity_;
};

}  // namespace

std::unique_ptr<WeightSource> open_checkpoint(const fs::path& dir, const ModelConfig& config,
                                              const std::vector<WeightSpec>& needed) {
  return std::make_unique<Checkpoint>(dir, config, needed);
}

}  // namespace dsv32::io
