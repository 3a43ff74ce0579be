#include "golden/reader/layout.h"

#include <algorithm>
#include <set>

#include "src/io/io.h"
#include "src/io/json.h"
#include "src/io/text.h"
#include "src/model/batch.h"
#include "src/model/weights.h"

namespace dsv32::golden {
namespace {

[[noreturn]] void refuse(const std::string& where, const std::string& what,
                         const std::string& expected, const std::string& got) {
  io::refuse({.where = where,
              .what = what,
              .expected = expected,
              .got = io::printable(got),
              .hint = "golden/make makes the goldens of configs/cases.json anew"});
}

/// Forward taps that Hugging Face code can show (no selection in dense mode), then gradients.
std::vector<std::string> expected_taps(const Case& c) {
  std::vector<std::string> names;
  for (const std::string& name : forward_taps(c.config)) {
    const bool is_topk = parse_tap(name)->info.kind == TapKind::topk;
    if (c.config.use_sparse_attention || !is_topk) names.push_back(name);
  }
  if (!c.chunks.empty()) return names;
  for (const std::string& name : gradient_taps(c.config)) names.push_back(name);
  return names;
}

std::vector<std::string> parse_names(const std::string& text, const std::string& where) {
  const io::Json json = io::parse_json(text, where + ": attribute taps");
  if (!json.is_array()) refuse(where, "attribute taps", "a JSON array", io::kind_of(json));
  std::vector<std::string> names;
  for (const io::Json& name : json) {
    if (!name.is_string()) refuse(where, "attribute taps", "names", io::kind_of(name));
    names.push_back(name.get<std::string>());
  }
  return names;
}

void require(const Golden& golden, const std::string& name, const std::string& expected,
             const std::string& where) {
  const std::string& got = golden.attributes.at(name);
  if (got != expected) refuse(where, "attribute " + name, expected, got);
}

/// The config in the file and the case's own, both written by the same function.
void check_config(const Golden& golden, const Case& c, const std::string& where) {
  const std::string& text = golden.attributes.at("config");
  require(golden, "config_sha256", io::sha256_hex(text.data(), text.size()), where);
  const ModelConfig config = io::parse_config(text, where + ": attribute config");
  const std::string got = io::config_json(config), expected = io::config_json(c.config);
  // Hugging Face has no dense switch: a dense golden is one whose index_topk covers every key.
  if (c.config.use_sparse_attention && got != expected) {
    refuse(where, "attribute config", "the config of case " + c.name + " in configs/cases.json",
           "another one");
  }
}

}  // namespace

const std::vector<std::string>& required_attributes() {
  static const std::vector<std::string> names = {"format",        "version",
                                                 "case_name",     "case",
                                                 "kind",          "dialect",
                                                 "dtype",         "mode",
                                                 "rope_layout",   "mask",
                                                 "forced",        "config",
                                                 "config_sha256", "attn_implementation",
                                                 "taps",          "weights",
                                                 "seed",          "producer",
                                                 "weights_loaded"};
  return names;
}

void check_attributes(const Golden& golden, const ManifestEntry& entry, const Case& c,
                      const std::string& where) {
  for (const std::string& name : required_attributes()) {
    const auto it = golden.attributes.find(name);
    if (it == golden.attributes.end()) refuse(where, "attribute " + name, "this attribute", "none");
    if (it->second.empty()) refuse(where, "attribute " + name, "a value", "an empty string");
  }
  require(golden, "format", kFileFormat, where);
  require(golden, "version", std::to_string(kVersion), where);
  require(golden, "case_name", entry.case_name, where);
  require(golden, "kind", entry.kind, where);
  require(golden, "kind", c.golden, where);
  require(golden, "case", io::case_json(c), where);
  require(golden, "mode", c.chunks.empty() ? "backward" : "forward", where);
  require(golden, "rope_layout", "interleaved", where);
  require(golden, "mask", c.mask_given ? "given" : "none", where);
  require(golden, "forced", "false", where);
  require(golden, "dtype", "float32", where);
  require(golden, "seed", std::to_string(c.seed), where);
  require(golden, "weights", SyntheticWeights(c).identity(), where);
  check_config(golden, c, where);
}

std::vector<std::string> check_taps(const Golden& golden, const Case& c, const std::string& where) {
  const std::vector<std::string> names = parse_names(golden.attributes.at("taps"), where);
  std::set<std::string> known;
  for (const std::string& name : names) {
    const std::optional<TapName> tap = parse_tap(name);
    if (!tap || !tap_shape(*tap, c.config, c.B, c.S)) {
      refuse(where, "attribute taps", "taps of case " + c.name, name);
    }
    if (!known.insert(name).second)
      refuse(where, "attribute taps", "each tap once", name + " twice");
  }
  std::vector<std::string> missing;
  for (const std::string& name : expected_taps(c)) {
    if (known.count(name) == 0) missing.push_back(name);
  }
  if (!missing.empty())
    refuse(where, "taps", "every tap of case " + c.name, "missing " + io::listed(missing));
  return names;
}

Shape shape_of_tap(const TapName& tap, const Case& c) {
  return tap_shape(tap, c.config, c.B, c.S).value();
}

void check_inputs(const Golden& golden, const Case& c, const std::string& where) {
  const Batch batch = make_batch(c);
  const std::pair<const char*, const std::vector<int64_t>*> inputs[] = {
      {"input_ids", &batch.input_ids},
      {"attention_mask", &batch.attention_mask},
      {"position_ids", &batch.position_ids},
      {"labels", &batch.labels}};
  for (const auto& [name, values] : inputs) {
    if (golden.inputs.at(name) != *values) {
      refuse(where, std::string("/inputs/") + name, "the batch of case " + c.name, "other values");
    }
  }
}

HostTensor unpack_topk(const HostTensor& bits, const Case& c, const std::string& where) {
  const int64_t rows = c.B * c.S, bytes = (c.S + 7) / 8, k = c.config.index_topk;
  HostTensor topk(DType::int32, {c.B, c.S, k});
  const auto in = bits.data<uint8_t>();
  auto out = topk.data<int32_t>();
  std::fill(out.begin(), out.end(), -1);
  for (int64_t row = 0; row < rows; ++row) {
    int64_t found = 0;
    for (int64_t t = 0; t < bytes * 8; ++t) {
      if ((in[row * bytes + t / 8] >> (t % 8) & 1) == 0) continue;
      if (t >= c.S || found == k) {
        refuse(where, "topk", "at most " + std::to_string(k) + " keys below " + std::to_string(c.S),
               "key " + std::to_string(t) + " in row " + std::to_string(row));
      }
      out[row * k + found++] = static_cast<int32_t>(t);
    }
  }
  return topk;
}

}  // namespace dsv32::golden
