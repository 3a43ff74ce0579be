#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <set>

#include "src/io/cases.h"
#include "src/io/io.h"
#include "src/io/json.h"
#include "src/io/text.h"
#include "src/io/trace/generated.h"
#include "src/io/trace/metadata.h"
#include "src/io/trace/placement.h"
#include "src/io/trace/sketch.h"
#include "src/model/check_name.h"
#include "src/model/lora.h"

namespace dsv32::io {
namespace {

void check_dtype(const TapName& tap, const TensorEntry& entry, const std::string& where) {
  const bool integer =
      entry.readable && (entry.dtype == DType::int32 || entry.dtype == DType::int64);
  const bool floating = entry.readable && is_floating(entry.dtype);
  if (tap.info.is_decision() ? integer : floating) return;
  refuse({.where = where,
          .what = "tensor " + tap.full + ": dtype",
          .expected = tap.info.is_decision() ? "I32 (or I64)" : "F64, F32, BF16 or F16",
          .got = std::string(entry.stored)});
}

/// A piece has the whole's shape but along one axis, in which it must lie.
bool is_piece_of(const Shape& piece, const Shape& whole, const Placement& placement) {
  const auto dim = static_cast<size_t>(placement.dim);
  if (piece.size() != whole.size() || dim >= whole.size()) return false;
  for (size_t axis = 0; axis < whole.size(); ++axis)
    if (axis != dim && piece[axis] != whole[axis]) return false;
  return piece[dim] > 0 && placement.offset + piece[dim] <= whole[dim];
}

bool fits(const Shape& stored, const Shape& whole, const Placement& placement) {
  return placement.kind == Placement::Kind::piece ? is_piece_of(stored, whole, placement)
                                                  : stored == whole;
}

std::string expected_shape(const Shape& whole, const Placement& placement) {
  if (placement.kind != Placement::Kind::piece) return to_string(whole);
  return "a piece of " + to_string(whole) + " along axis " + std::to_string(placement.dim) +
         " from " + std::to_string(placement.offset) + " on";
}

void check_shape(const TapName& tap, const TensorEntry& entry, const Case& c,
                 const Placement& placement, const std::string& where) {
  if (tap.info.name.starts_with("train.")) {  // one value per step
    if (entry.shape.size() == 1) return;
    refuse({.where = where,
            .what = "tensor " + tap.full + ": shape",
            .expected = "[steps]",
            .got = to_string(entry.shape)});
  }
  const auto shape = tap_shape(tap, c.config, c.B, c.S);
  if (!shape)
    refuse({.where = where,
            .what = "tensor " + printable(tap.full),
            .expected = "a tap that case " + c.name + " has",
            .got = "a layer or a weight that it does not have"});
  // A scalar may have one element in any rank.
  if (tap.info.kind == TapKind::scalar && numel(entry.shape) == 1) return;
  if (!fits(entry.shape, *shape, placement))
    refuse({.where = where,
            .what = "tensor " + tap.full + ": shape",
            .expected = expected_shape(*shape, placement) + ", as case " + c.name + " says",
            .got = to_string(entry.shape)});
}

TapName checked_tap(const std::string& name, const TensorEntry& entry, const Case& c,
                    const Placement& placement, const std::string& where) {
  const auto tap = parse_tap(name);
  if (!tap)
    refuse({.where = where,
            .what = "tensor",
            .expected = "a tap name (layers.N.attn.out, grad.model.norm.weight, ...)",
            .got = printable(name)});
  check_dtype(*tap, entry, where);
  check_shape(*tap, entry, c, placement, where);
  return *tap;
}

/// Even lanes then odd lanes -> pairs, in the first `lanes` of each row of the last dimension.
HostTensor interleaved(const HostTensor& stored, int64_t lanes) {
  const int64_t width = stored.shape().back(), half = lanes / 2;
  const auto item = static_cast<size_t>(item_size(stored.dtype()));
  HostTensor out(stored.dtype(), stored.shape());
  std::memcpy(out.raw(), stored.raw(), static_cast<size_t>(stored.bytes()));
  for (int64_t row = 0; row < stored.numel() / width; ++row) {
    const std::byte* from = stored.raw() + row * width * static_cast<int64_t>(item);
    std::byte* to = out.raw() + row * width * static_cast<int64_t>(item);
    for (int64_t i = 0; i < half; ++i) {
      std::memcpy(to + 2 * i * static_cast<int64_t>(item), from + i * static_cast<int64_t>(item),
                  item);
      std::memcpy(to + (2 * i + 1) * static_cast<int64_t>(item),
                  from + (half + i) * static_cast<int64_t>(item), item);
    }
  }
  return out;
}

HostTensor narrowed(const HostTensor& stored, const std::string& name, const std::string& where) {
  if (stored.dtype() == DType::int32) return stored;
  HostTensor out(DType::int32, stored.shape());
  const auto from = stored.data<int64_t>();
  const auto to = out.data<int32_t>();
  for (size_t i = 0; i < from.size(); ++i) {
    if (from[i] < INT32_MIN || from[i] > INT32_MAX)
      refuse({.where = where,
              .what = "tensor " + name + ": element " + std::to_string(i),
              .expected = "a value within 32 bits",
              .got = std::to_string(from[i])});
    to[i] = static_cast<int32_t>(from[i]);
  }
  return out;
}

/// Execution order: forward taps, KL and training values, gradients head first, parameters.
std::vector<std::string> in_order(const SafetensorsFile& file, const ModelConfig& config) {
  std::map<std::string, size_t> rank;
  const auto add = [&rank](const std::vector<std::string>& names) {
    for (const std::string& name : names) rank.emplace(name, rank.size());
  };
  const Objective joint{.kl = KlStage::sparse};  // every tap that any mode has
  add(forward_taps(config));
  add(kl_taps(config, joint));
  const size_t others = rank.size() + 1'000'000'000;  // after every forward tap, before gradients
  std::map<std::string, size_t> gradient_rank;
  for (const std::string& name : gradient_taps(config, joint))
    gradient_rank.emplace(name, others + 1 + gradient_rank.size());
  const auto place = [&](const std::string& name) {
    if (const auto it = rank.find(name); it != rank.end()) return it->second;
    if (const auto it = gradient_rank.find(name); it != gradient_rank.end()) return it->second;
    return name.starts_with("grad.") || name.starts_with("param.") ? SIZE_MAX : others;
  };
  std::vector<std::string> names = file.names_by_offset();
  std::stable_sort(names.begin(), names.end(),
                   [&](const std::string& a, const std::string& b) { return place(a) < place(b); });
  return names;
}

/// One element, whatever its rank was.
HostTensor as_scalar(const HostTensor& stored) {
  HostTensor out(stored.dtype(), {});
  std::memcpy(out.raw(), stored.raw(), static_cast<size_t>(stored.bytes()));
  return out;
}

/// The lanes of a tap that the file keeps de-interleaved; 0: none.
int64_t deinterleaved_lanes(const TapName& tap, const Metadata& metadata, const ModelConfig& c) {
  const std::string_view name = tap.info.name;
  const auto is = [&](const char* key) { return metadata.at(key) == "deinterleaved"; };
  if (name == "q_rope" || name == "k_rope") return is("rope_layout") ? c.qk_rope_head_dim : 0;
  if (name == "ix.q" || name == "ix.k") return is("index_layout") ? c.qk_rope_head_dim : 0;
  return 0;
}

double lowest(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return std::numeric_limits<double>::lowest();
    case DType::float16:
      return float16_to_float(0xFBFF);
    case DType::bfloat16:
      return bfloat16_to_float(0xFF7F);
    default:
      return std::numeric_limits<float>::lowest();
  }
}

/// Scores at or below half of the lowest number of their type stand for -inf.
HostTensor masked(const HostTensor& stored, DType run) {
  const double hidden = std::max(lowest(stored.dtype()), lowest(run)) / 2;
  std::vector<double> values = stored.to_doubles();
  bool any = false;
  for (double& value : values) {
    if (!(value <= hidden) || std::isinf(value)) continue;
    value = -std::numeric_limits<double>::infinity();
    any = true;
  }
  return any ? HostTensor::from_doubles(stored.dtype(), stored.shape(), values) : stored;
}

HostTensor read_tap(const SafetensorsFile& file, const TapName& tap, const Metadata& metadata,
                    const ModelConfig& config) {
  HostTensor value = file.read(tap.full);
  if (tap.info.is_decision()) return narrowed(value, tap.full, file.path().string());
  if (tap.info.kind == TapKind::scalar) return as_scalar(value);
  if (tap.info.kind == TapKind::scores)
    return masked(value, stored_type(parse_dtype(metadata.at("dtype"))));
  const int64_t lanes = deinterleaved_lanes(tap, metadata, config);
  return lanes > 0 ? interleaved(value, lanes) : value;
}

/// Single steps of a training.
bool is_of_step(const std::string& name) {
  return parse_check(name) && parse_check(name)->scope == CheckScope::step;
}

/// The update of a weight in one step; other names of a step are known, but not judged.
bool is_update(const std::string& name, const Metadata& metadata) {
  return metadata.at("mode") == "train" && parse_check(name)->what == "update";
}

void check_update(const std::string& name, const TensorEntry& entry, const Case& c,
                  const Placement& placement, const std::string& where) {
  TapName weight = *parse_tap("grad." + parse_check(name)->of);
  const auto shape = trained_shape(c.config, parse_check(name)->of);
  weight.full = name;
  check_dtype(weight, entry, where);
  if (!shape || !fits(entry.shape, *shape, placement))
    refuse({.where = where,
            .what = "tensor " + printable(name) + ": shape",
            .expected = (shape ? expected_shape(*shape, placement) : "a weight or LoRA factor") +
                        ", as case " + c.name + " says",
            .got = to_string(entry.shape)});
}

HostTensor read_slope(const SafetensorsFile& file, const TapName& tap, const Metadata& metadata,
                      const ModelConfig& config) {
  HostTensor value = file.read(slope_name(tap.full));
  if (tap.info.kind == TapKind::scalar) return as_scalar(value);
  const int64_t lanes = deinterleaved_lanes(tap, metadata, config);
  return lanes > 0 ? interleaved(value, lanes) : value;
}

/// What a backward pass said of taps that it passed by: nothing arrived there.
void add_stopped(Trace& trace, const Case& c, const std::string& where) {
  for (const std::string& name : candidate_notes(trace, where).slopes_none) {
    const std::optional<TapName> tap = parse_slope(slope_name(name));
    const auto shape = tap ? tap_shape(*tap, c.config, c.B, c.S) : std::nullopt;
    if (!shape)
      refuse({.where = where,
              .what = "metadata slopes_none",
              .expected = "taps that case " + c.name + " has",
              .got = printable(name)});
    if (!trace.slopes.contains(name))
      trace.slopes.emplace(name, HostTensor(DType::float32, *shape));
  }
}

void say_canonical(Metadata& metadata, const std::string& key, const std::string& canonical) {
  if (metadata.at(key) != "deinterleaved") return;
  metadata[key] = canonical;
  metadata[key + "_stored"] = "deinterleaved";
}

}  // namespace

Case case_of_trace(const Trace& trace) {
  Case c = case_from_text(trace.metadata.at("case"), "metadata.case");
  const auto mask = trace.metadata.find("mask");
  if (mask != trace.metadata.end()) c.mask_given = mask->second == "given";
  const auto mode = trace.metadata.find("mode");
  if (mode != trace.metadata.end() && mode->second == kGenerate)
    c.decoding = decoding_of(trace.metadata, c, "trace");
  return c;
}

TracePart read_trace_part(const fs::path& path) {
  const SafetensorsFile file(path);
  const std::string where = path.string();
  TracePart part;
  Trace& trace = part.trace;
  trace.metadata = checked_metadata(file.metadata(), where);
  const Placements placements(trace.metadata, where);
  part.rank = placements.rank();
  part.world = placements.world();
  Case c = case_from_text(file.metadata().at("case"), where + ": metadata.case");
  const bool generated = trace.metadata.at("mode") == kGenerate;
  if (generated) c.decoding = decoding_of(trace.metadata, c, where);
  std::map<std::string, TapName> taps;
  Json unjudged = Json::array();
  std::vector<std::string> updates;
  for (const auto& [name, entry] : file.tensors()) {
    if (!generated && sketch_part(name)) continue;
    const Placement placement = placements.of(name);
    if (placement.kind != Placement::Kind::replicated) part.placements[name] = placement;
    if (generated) {
      check_generated(name, entry, c, where);
      taps.emplace(name, *parse_tap(name));
    } else if (is_of_step(name) && is_update(name, trace.metadata)) {
      check_update(name, entry, c, placement, where);
      updates.push_back(name);
    } else if (is_of_step(name)) {
      unjudged.push_back(name);
    } else if (const auto slope = parse_slope(name)) {
      TapName named = *slope;
      named.full = name;
      check_dtype(named, entry, where);
      check_shape(named, entry, c, placement, where);
      trace.slopes.emplace(slope->full, read_slope(file, *slope, trace.metadata, c.config));
    } else {
      taps.emplace(name, checked_tap(name, entry, c, placement, where));
    }
  }
  candidate_notes(trace, where);  // refuses notes that nobody could read later
  for (const std::string& name : in_order(file, c.config))
    if (taps.contains(name))
      trace.put(name, read_tap(file, taps.at(name), trace.metadata, c.config));
  for (const std::string& name : updates) trace.put(name, file.read(name));
  trace.sketches = read_sketches(file, c);
  if (!trace.slopes.empty()) add_stopped(trace, c, where);
  if (!unjudged.empty()) trace.metadata["unjudged_tensors"] = canonical_json(unjudged);
  say_canonical(trace.metadata, "rope_layout", "interleaved");
  say_canonical(trace.metadata, "index_layout", "canonical");
  return part;
}

Trace read_trace(const fs::path& path) {
  TracePart part = read_trace_part(path);
  if (part.world == 1 && part.placements.empty()) return std::move(part.trace);
  refuse({.where = path.string(),
          .what = "trace",
          .expected = "a whole one",
          .got = "rank " + std::to_string(part.rank) + " of " + std::to_string(part.world),
          .hint = "--candidate FOLDER takes the files of all ranks"});
}

void write_trace(const fs::path& path, const Trace& trace) {
  std::vector<std::pair<std::string, TensorEntry>> specs;
  const auto add = [&](const std::string& name, const HostTensor& value) {
    specs.push_back({name, {.dtype = value.dtype(), .shape = value.shape()}});
  };
  auto parts = sketch_tensors(trace.sketches);
  for (const auto& [tap, value] : trace.slopes) parts.emplace(slope_name(tap), value);
  for (const std::string& name : trace.names()) add(name, *trace.find(name));
  for (const auto& [name, value] : parts) add(name, value);
  SafetensorsWriter writer(path, trace.metadata, specs);
  for (const std::string& name : trace.names()) writer.append(*trace.find(name));
  for (const auto& [name, value] : parts) writer.append(value);
  writer.finish();
}

}  // namespace dsv32::io
