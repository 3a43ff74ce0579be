#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>
#include <set>

#include "src/io/cases.h"
#include "src/io/io.h"
#include "src/io/json.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

using Metadata = std::map<std::string, std::string>;

/// Required metadata with a closed set of values; an empty set: any text.
const std::vector<std::pair<std::string, std::set<std::string>>>& required_metadata() {
  static const std::vector<std::pair<std::string, std::set<std::string>>> keys = {
      {"format", {"dsv32-verify.trace"}},
      {"version", {"1"}},
      {"case", {}},
      {"mode", {"forward", "backward", "kl-warmup", "kl-sparse", "train"}},
      {"dtype", {"float64", "float32", "bfloat16", "float16"}},
      {"rope_layout", {"interleaved", "deinterleaved"}},
      {"producer", {}},
      {"weights", {}},
      {"forced", {"true", "false"}},
      {"attn_implementation", {}},
      {"mask", {"given", "none"}}};
  return keys;
}

std::string alternatives(const std::set<std::string>& values) {
  std::string out;
  for (const std::string& value : values) out += (out.empty() ? "" : " or ") + value;
  return out;
}

void check_required(const Metadata& metadata, const std::string& where) {
  for (const auto& [key, values] : required_metadata()) {
    const auto it = metadata.find(key);
    if (it == metadata.end() || it->second.empty())
      refuse({.where = where,
              .what = "metadata." + key,
              .expected = values.empty() ? "a value" : alternatives(values),
              .got = it == metadata.end() ? "a missing key" : "an empty text",
              .hint = "a trace is made by golden/dump or dsv32-verify dump"});
    if (!values.empty() && !values.contains(it->second))
      refuse({.where = where,
              .what = "metadata." + key,
              .expected = alternatives(values),
              .got = printable(it->second)});
  }
}

/// `synthetic:SEED` with a decimal seed, or `algorithm:digest`.
void check_weights(const std::string& text, const std::string& where) {
  const size_t colon = text.find(':');
  uint64_t seed = 0;
  const char* end = text.data() + text.size();
  bool good = colon != std::string::npos && colon > 0 && colon + 1 < text.size();
  if (good && text.starts_with("synthetic:")) {
    const auto parsed = std::from_chars(text.data() + colon + 1, end, seed);
    good = parsed.ec == std::errc() && parsed.ptr == end;
  }
  if (!good)
    refuse({.where = where,
            .what = "metadata.weights",
            .expected = "synthetic:SEED or sha256:DIGEST",
            .got = printable(text)});
}

void check_metadata(const Metadata& metadata, const std::string& where) {
  check_required(metadata, where);
  check_weights(metadata.at("weights"), where);
  const Json producer = parse_json(metadata.at("producer"), where + ": metadata.producer");
  if (!producer.is_object())
    refuse({.where = where,
            .what = "metadata.producer",
            .expected = "an object",
            .got = kind_of(producer)});
}

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

void check_shape(const TapName& tap, const TensorEntry& entry, const Case& c,
                 const std::string& where) {
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
  if (*shape != entry.shape)
    refuse({.where = where,
            .what = "tensor " + tap.full + ": shape",
            .expected = to_string(*shape) + ", as case " + c.name + " says",
            .got = to_string(entry.shape)});
}

TapName checked_tap(const std::string& name, const TensorEntry& entry, const Case& c,
                    const std::string& where) {
  const auto tap = parse_tap(name);
  if (!tap)
    refuse({.where = where,
            .what = "tensor",
            .expected = "a tap name (layers.N.attn.out, grad.model.norm.weight, ...)",
            .got = printable(name)});
  check_dtype(*tap, entry, where);
  check_shape(*tap, entry, c, where);
  return *tap;
}

/// Even lanes then odd lanes -> pairs, in each row of the last dimension.
HostTensor interleaved(const HostTensor& stored) {
  const int64_t width = stored.shape().back(), half = width / 2;
  const auto item = static_cast<size_t>(item_size(stored.dtype()));
  HostTensor out(stored.dtype(), stored.shape());
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

HostTensor read_tap(const SafetensorsFile& file, const TapName& tap, const std::string& where) {
  HostTensor value = file.read(tap.full);
  if (tap.info.is_decision()) return narrowed(value, tap.full, where);
  const bool rotated = tap.info.name == "q_rope" || tap.info.name == "k_rope";
  return rotated && file.metadata().at("rope_layout") == "deinterleaved" ? interleaved(value)
                                                                         : value;
}

}  // namespace

Case case_of_trace(const Trace& trace) {
  Case c = case_from_text(trace.metadata.at("case"), "metadata.case");
  const auto mask = trace.metadata.find("mask");
  if (mask != trace.metadata.end()) c.mask_given = mask->second == "given";
  return c;
}

Trace read_trace(const fs::path& path) {
  const SafetensorsFile file(path);
  const std::string where = path.string();
  check_metadata(file.metadata(), where);
  const Case c = case_from_text(file.metadata().at("case"), where + ": metadata.case");
  std::map<std::string, TapName> taps;
  for (const auto& [name, entry] : file.tensors())
    taps.emplace(name, checked_tap(name, entry, c, where));
  Trace trace;
  trace.metadata = file.metadata();
  candidate_notes(trace, where);  // refuses notes that nobody could read later
  for (const std::string& name : in_order(file, c.config))
    trace.put(name, read_tap(file, taps.at(name), where));
  if (trace.metadata.at("rope_layout") == "deinterleaved") {
    trace.metadata["rope_layout"] = "interleaved";
    trace.metadata["rope_layout_stored"] = "deinterleaved";
  }
  return trace;
}

void write_trace(const fs::path& path, const Trace& trace) {
  std::vector<std::pair<std::string, TensorEntry>> specs;
  for (const std::string& name : trace.names()) {
    const HostTensor& value = *trace.find(name);
    specs.push_back({name, {.dtype = value.dtype(), .shape = value.shape()}});
  }
  SafetensorsWriter writer(path, trace.metadata, specs);
  for (const std::string& name : trace.names()) writer.append(*trace.find(name));
  writer.finish();
}

}  // namespace dsv32::io
