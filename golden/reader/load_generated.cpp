#include <cmath>

#include "golden/reader/generated.h"
#include "golden/reader/hdf5_file.h"
#include "golden/reader/layout.h"
#include "src/io/io.h"
#include "src/io/text.h"
#include "src/io/trace/generated.h"

namespace dsv32::golden {
namespace {

constexpr const char* kGeneratedFormat = "dsv32-verify.generate-golden";
constexpr const char* kTokens = "gen.tokens";
constexpr const char* kLogits = "gen.logits";

[[noreturn]] void refuse(const std::string& where, const std::string& what,
                         const std::string& expected, const std::string& got) {
  io::refuse({.where = where, .what = what, .expected = expected, .got = io::printable(got)});
}

/// Reads one golden; the order of the members is the order of the checks.
class GeneratedLoader {
 public:
  GeneratedLoader(const Case& c, const ManifestEntry& entry, std::string bytes,
                  const std::string& where)
      : case_(c), entry_(entry), where_(where), file_(std::move(bytes), where) {
    history_ = case_;
    history_.S = case_.S + case_.decoding.steps - 1;
  }

  Golden load() {
    read_attributes();
    const std::vector<std::string> names = decisions();
    require_members("/", 3);
    require_members("/decisions", static_cast<int64_t>(names.size()));
    for (const std::string& name : names) read_decision(name);
    read_tokens();
    read_logits();
    fill_metadata();
    return std::move(golden_);
  }

 private:
  void require(const std::string& name, const std::string& expected) const {
    const auto it = golden_.attributes.find(name);
    if (it == golden_.attributes.end() || it->second.empty())
      refuse(where_, "attribute " + name, "this attribute", "none");
    if (!expected.empty() && it->second != expected)
      refuse(where_, "attribute " + name, expected, it->second);
  }

  void read_attributes() {
    for (const std::string& name : file_.attributes("/"))
      golden_.attributes[name] = file_.text_attribute("/", name);
    require("format", kGeneratedFormat);
    require("version", std::to_string(kVersion));
    require("kind", kGeneratedKind);
    require("case_name", entry_.case_name.substr(std::string(kGeneratedPrefix).size()));
    require("case", io::case_json(case_));
    require("mode", io::kGenerate);
    require("decoding", io::decoding_json(case_.decoding));
    require("dtype", "float32");
    require("forced", "false");
    require("mask", case_.mask_given ? "given" : "none");
    require("seed", std::to_string(case_.seed));
    require("weights", SyntheticWeights(case_).identity());
    for (const char* name : {"dialect", "producer", "weights_loaded", "attn_implementation"})
      require(name, "");
    check_config();
    golden_.case_name = entry_.case_name;
    golden_.kind = entry_.kind;
    golden_.dialect = golden_.attributes.at("dialect");
    golden_.dtype = DType::float32;
  }

  void check_config() const {
    require("config", "");
    const std::string& text = golden_.attributes.at("config");
    require("config_sha256", io::sha256_hex(text.data(), text.size()));
    const ModelConfig config = io::parse_config(text, where_ + ": attribute config");
    if (io::config_json(config) != io::config_json(case_.config))
      refuse(where_, "attribute config", "the config of case " + case_.name, "another one");
  }

  /// Dense attention selects every key: nothing to keep.
  std::vector<std::string> decisions() const {
    std::vector<std::string> names;
    for (const std::string& name : forward_taps(case_.config)) {
      const TapKind kind = parse_tap(name)->info.kind;
      const bool selects = kind == TapKind::topk && case_.config.use_sparse_attention;
      if (kind == TapKind::experts || selects) names.push_back(name);
    }
    return names;
  }

  void require_members(const std::string& group, int64_t expected) const {
    const int64_t got = file_.members(group);
    if (got != expected)
      refuse(where_, "members of " + group, std::to_string(expected), std::to_string(got));
  }

  void read_decision(const std::string& name) {
    const TapName tap = *parse_tap(name);
    const Shape shape = shape_of_tap(tap, history_);
    const std::string path = "/decisions/" + name;
    if (tap.info.kind == TapKind::experts) {
      golden_.trace.put(name, file_.read(path, DType::int32, shape));
      return;
    }
    const std::string encoding = file_.text_attribute(path, "encoding");
    if (encoding != "bitset") refuse(where_, path + " attribute encoding", "bitset", encoding);
    const Shape got = file_.integer_attribute(path, "shape", 8);
    if (got != shape) refuse(where_, path + " attribute shape", to_string(shape), to_string(got));
    const Shape packed = {history_.B, history_.S, (history_.S + 7) / 8};
    golden_.trace.put(
        name, unpack_topk(file_.read(path, DType::uint8, packed), history_, where_ + ": " + path));
  }

  void read_tokens() {
    HostTensor tokens =
        file_.read(std::string("/") + kTokens, DType::int64, {case_.B, case_.decoding.steps});
    for (const int64_t token : tokens.data<int64_t>())
      if (token < 0 || token >= case_.config.vocab_size)
        refuse(where_, kTokens, "tokens of the vocabulary", std::to_string(token));
    golden_.trace.put(kTokens, std::move(tokens));
  }

  void read_logits() {
    HostTensor logits = file_.read(std::string("/") + kLogits, DType::float32,
                                   {case_.B, case_.decoding.steps, case_.config.vocab_size});
    for (const float value : logits.data<float>())
      if (!std::isfinite(value)) refuse(where_, kLogits, "finite values", std::to_string(value));
    golden_.trace.put(kLogits, std::move(logits));
  }

  /// As a trace file of the same run would say (docs/formats.md 4).
  void fill_metadata() {
    for (const auto& [name, value] : golden_.attributes)
      if (name != "config" && name != "config_sha256") golden_.trace.metadata[name] = value;
    golden_.trace.metadata["format"] = "dsv32-verify.trace";
  }

  const Case& case_;
  const ManifestEntry& entry_;
  const std::string where_;
  const Hdf5File file_;
  Case history_;  // with S of the whole history
  Golden golden_;
};

}  // namespace

Golden load_generated(const ManifestEntry& entry, std::string bytes, const std::string& where) {
  const std::string prefix = kGeneratedPrefix;
  if (!entry.case_name.starts_with(prefix))
    refuse(where, "case of a golden of kind generate", prefix + "CASE", entry.case_name);
  const Case& c = io::find_case(entry.case_name.substr(prefix.size()));
  return GeneratedLoader(c, entry, std::move(bytes), where).load();
}

}  // namespace dsv32::golden
