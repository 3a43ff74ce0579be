#include "src/io/trace/metadata.h"

#include <charconv>
#include <set>
#include <utility>
#include <vector>

#include "src/io/cases.h"
#include "src/io/json.h"
#include "src/io/text.h"
#include "src/model/weights.h"

namespace dsv32::io {
namespace {

/// Keys with a closed set of values; an empty set: any text.
using Keys = std::vector<std::pair<std::string, std::set<std::string>>>;

const Keys& required_keys() {
  static const Keys keys = {
      {"format", {"dsv32-verify.trace"}},
      {"version", {"1"}},
      {"case", {}},
      {"mode", {"forward", "backward", "kl-warmup", "kl-sparse", "train", "ops", "generate"}},
      {"dtype", {"float64", "float32", "bfloat16", "float16", "fp8"}}};
  return keys;
}

const Keys& optional_keys() {
  static const Keys keys = {{"rope_layout", {"interleaved", "deinterleaved"}},
                            {"index_layout", {"canonical", "deinterleaved"}},
                            {"producer", {}},
                            {"weights", {}},
                            {"forced", {"true", "false"}},
                            {"attn_implementation", {}},
                            {"mask", {"given", "none"}},
                            {"sketch", {"0", "1"}}};
  return keys;
}

std::string alternatives(const std::set<std::string>& values) {
  std::string out;
  for (const std::string& value : values) out += (out.empty() ? "" : " or ") + value;
  return out;
}

void check_value(const std::string& key, const std::string& value,
                 const std::set<std::string>& values, const std::string& where) {
  if (!value.empty() && (values.empty() || values.contains(value))) return;
  refuse({.where = where,
          .what = "metadata." + key,
          .expected = values.empty() ? "a value" : alternatives(values),
          .got = value.empty() ? "an empty text" : printable(value)});
}

void check_keys(const Metadata& metadata, const std::string& where) {
  for (const auto& [key, values] : required_keys()) {
    const auto it = metadata.find(key);
    if (it == metadata.end())
      refuse({.where = where,
              .what = "metadata." + key,
              .expected = values.empty() ? "a value" : alternatives(values),
              .got = "a missing key",
              .hint = "a trace is made by golden/dump or dsv32-verify dump"});
    check_value(key, it->second, values, where);
  }
  for (const auto& [key, values] : optional_keys())
    if (const auto it = metadata.find(key); it != metadata.end())
      check_value(key, it->second, values, where);
}

/// `synthetic:SEED` with a decimal seed, or `algorithm:digest`.
void check_weights(const std::string& text, const std::string& where) {
  const size_t colon = text.find(':');
  uint64_t seed = 0;
  const char* end = text.data() + text.size();
  bool good = colon != std::string::npos && colon > 0 && colon + 1 < text.size();
  if (good && (text.starts_with("synthetic:") || text.starts_with("synthetic-fp8:"))) {
    const auto parsed = std::from_chars(text.data() + colon + 1, end, seed);
    good = parsed.ec == std::errc() && parsed.ptr == end;
  }
  if (!good)
    refuse({.where = where,
            .what = "metadata.weights",
            .expected = "synthetic:SEED, synthetic-fp8:SEED or sha256:DIGEST",
            .got = printable(text)});
}

/// "0,3,60", with `embed` and `head` at the ends.
void check_layers(const std::string& text, const Case& c, const std::string& where) {
  std::string rest = text + ",";
  for (size_t comma = rest.find(','); comma != std::string::npos; comma = rest.find(',')) {
    const std::string word = rest.substr(0, comma);
    rest.erase(0, comma + 1);
    int64_t layer = -1;
    const auto parsed = std::from_chars(word.data(), word.data() + word.size(), layer);
    const bool number = parsed.ec == std::errc() && parsed.ptr == word.data() + word.size();
    const bool good = number && layer >= 0 && layer < c.config.num_hidden_layers;
    if (good || word == "embed" || word == "head") continue;
    refuse({.where = where,
            .what = "metadata.layers",
            .expected = "layers from 0 to " + std::to_string(c.config.num_hidden_layers - 1) +
                        ", embed or head, with commas between them",
            .got = printable(word)});
  }
}

}  // namespace

Metadata checked_metadata(const Metadata& stored, const std::string& where) {
  check_keys(stored, where);
  const Case c = case_from_text(stored.at("case"), where + ": metadata.case");
  Metadata metadata = stored;
  metadata.merge(Metadata{{"rope_layout", "interleaved"},
                          {"index_layout", "canonical"},
                          {"producer", "{}"},
                          {"weights", SyntheticWeights(c).identity()},
                          {"forced", "false"},
                          {"attn_implementation", "unknown"},
                          {"mask", c.mask_given ? "given" : "none"}});
  check_weights(metadata.at("weights"), where);
  if (const auto layers = metadata.find("layers"); layers != metadata.end())
    check_layers(layers->second, c, where);
  const Json producer = parse_json(metadata.at("producer"), where + ": metadata.producer");
  if (!producer.is_object())
    refuse({.where = where,
            .what = "metadata.producer",
            .expected = "an object",
            .got = kind_of(producer)});
  return metadata;
}

}  // namespace dsv32::io
