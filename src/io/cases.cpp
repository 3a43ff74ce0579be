#include "src/io/cases.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "src/io/config.h"
#include "src/io/fields.h"
#include "src/io/io.h"
#include "src/io/text.h"
#include "src/model/weights.h"

namespace dsv32::io {
namespace {

constexpr uint64_t kCaseLimit = uint64_t{1} << 20;  // bytes of one case or of the list
constexpr int64_t kMaxTokens =
    int64_t{1} << 20;  // B * S: a case is only a claim, and an oracle is built from it
constexpr int64_t kLeastTokens = 2;   // of a row: one predicts another
constexpr double kMaxBias = 1 << 20;  // scores lie within 0 and 1
constexpr size_t kNameDigits = 8;     // hex digits in the name of an unlisted case

const std::set<std::string> kCaseKeys = {"config", "overrides", "seed",        "B",
                                         "S",      "pad",       "bias_offset", "chunks"};
/// Left out where they say what holds anyway.
const std::set<std::string> kOptionalKeys = {"edits", "pad_side", "position_offset", "config_style",
                                             "weights"};
/// The first two: dsv32_case.json.
const std::set<std::string> kTraceKeys = {"name", "mask", "batch"};
const std::set<std::string> kListKeys = {"name",     "mask_given", "sparse", "training",
                                         "decoding", "golden",     "purpose"};

void check_keys(const Json& object, const std::set<std::string>& more, const std::string& where) {
  if (!object.is_object())
    refuse({.where = where, .what = "case", .expected = "an object", .got = kind_of(object)});
  for (const std::string& key : kCaseKeys)
    if (!object.contains(key))
      refuse(
          {.where = where, .what = "case." + key, .expected = "a value", .got = "a missing key"});
  for (const auto& [key, value] : object.items())
    if (!kCaseKeys.contains(key) && !kOptionalKeys.contains(key) && !more.contains(key))
      refuse(
          {.where = where, .what = "case", .expected = "known keys only", .got = printable(key)});
}

/// The config that a case starts from: a shipped name or a whole object.
Json base_config(const Json& config, const std::string& where) {
  if (config.is_object()) return config;
  if (!config.is_string() || !is_config_name(config.get<std::string>()))
    refuse({.where = where,
            .what = "case.config",
            .expected = "tiny, small, medium, full or a whole config",
            .got = kind_of(config)});
  const fs::path path = config_path(config.get<std::string>());
  return parse_json(read_file(path, kCaseLimit), path.string());
}

void read_model(const Json& object, Case& c, const std::string& where) {
  Json config = base_config(object["config"], where);
  const Json& overrides = object["overrides"];
  if (!overrides.is_object())
    refuse({.where = where,
            .what = "case.overrides",
            .expected = "an object",
            .got = kind_of(overrides)});
  for (const auto& [field, value] : overrides.items()) {
    if (!is_config_field(field))
      refuse({.where = where,
              .what = "case.overrides",
              .expected = "config fields",
              .got = printable(field)});
    config[field] = value;
  }
  c.config_name = object["config"].is_string() ? object["config"].get<std::string>() : "";
  c.config = config_from_json(config, where);
  c.config.name = c.config_name.empty() ? where : c.config_name;
  c.overrides_json = canonical_json(overrides);
}

void read_chunks(const Fields& fields, const Json& chunks, Case& c) {
  if (!chunks.is_array()) fields.wrong("chunks", "a list of lengths", chunks);
  for (const Json& length : chunks) {
    const bool good = length.is_number_unsigned() && length.get<uint64_t>() >= 1 &&
                      length.get<uint64_t>() <= uint64_t(c.S);
    if (!good) fields.wrong("chunks", "lengths from 1 to S", length);
    c.chunks.push_back(length.get<int64_t>());
  }
  const int64_t sum = std::accumulate(c.chunks.begin(), c.chunks.end(), int64_t{0});
  if (!chunks.empty() && sum != c.S)
    fields.wrong("chunks", "lengths that sum to S, " + std::to_string(c.S), sum);
}

/// One entry of `edits`. docs/formats.md 3.
WeightEdit read_edit(const Json& object, const std::string& where) {
  static const std::set<std::string> kKeys = {"name", "row", "column", "scale", "add"};
  if (!object.is_object())
    refuse({.where = where, .what = "case.edits", .expected = "objects", .got = kind_of(object)});
  const Fields fields(object, where, "case.edits.");
  for (const auto& [key, value] : object.items())
    if (!kKeys.contains(key)) fields.wrong(printable(key), "name, row or column, scale, add", key);
  WeightEdit edit{.name = fields.text("name"),
                  .scale = fields.number_or("scale", 1),
                  .add = fields.number_or("add", 0)};
  if (fields.find("row")) edit.row = fields.integer("row");
  if (fields.find("column")) edit.column = fields.integer("column");
  if (edit.row.has_value() == edit.column.has_value())
    fields.wrong("row", "either a row or a column", edit.row ? "both" : "neither");
  return edit;
}

/// Throws Error (artefact) unless the edit changes a weight of this model, inside it.
void check_edit(const WeightEdit& edit, const ModelConfig& config, const std::string& where) {
  const int64_t index = edit.row ? *edit.row : *edit.column;
  bool named = false;
  for (const WeightSpec& spec : weight_specs(config)) {
    if (!names_weight(edit, spec.name)) continue;
    named = true;
    const int64_t size = edit.row ? spec.shape.front() : spec.shape.back();
    if (index < 0 || index >= size)
      refuse(
          {.where = where,
           .what = std::string("case.edits: ") + (edit.row ? "row" : "column") + " of " + spec.name,
           .expected = "0.." + std::to_string(size - 1),
           .got = std::to_string(index)});
  }
  if (!named)
    refuse({.where = where,
            .what = "case.edits: name",
            .expected = "a weight of this model, * for digits",
            .got = printable(edit.name)});
}

/// The optional keys.
void read_extras(const Json& object, Case& c, const std::string& where) {
  constexpr int64_t kLastOffset = int64_t{1} << 24;  // float32 holds every position below
  const Fields fields(object, where, "case.");
  if (const Json* edits = fields.find("edits")) {
    if (!edits->is_array()) fields.wrong("edits", "a list", *edits);
    for (const Json& entry : *edits) c.edits.push_back(read_edit(entry, where));
    for (const WeightEdit& edit : c.edits) check_edit(edit, c.config, where);
  }
  if (const Json* side = fields.find("pad_side")) {
    if (*side != "left" && *side != "right") fields.wrong("pad_side", "left or right", *side);
    c.pad_side = *side == "right" ? PadSide::right : PadSide::left;
  }
  c.position_offset = fields.integer_or("position_offset", 0);
  if (c.position_offset < 0 || c.position_offset > kLastOffset)
    fields.wrong("position_offset", "0.." + std::to_string(kLastOffset), c.position_offset);
  const int64_t style = fields.integer_or("config_style", 4);
  if (style != 4 && style != 5) fields.wrong("config_style", "4 or 5", style);
  c.config_style = static_cast<int>(style);
  if (const Json* weights = fields.find("weights")) {
    if (*weights != "synthetic" && *weights != "synthetic-fp8")
      fields.wrong("weights", "synthetic or synthetic-fp8", *weights);
    c.fp8 = *weights == "synthetic-fp8";
    if (c.fp8 && !c.config.fp8) c.config.fp8.emplace();
  }
}

void read_shape(const Json& object, Case& c, const std::string& where) {
  const Fields fields(object, where, "case.");
  if (!object["seed"].is_number_unsigned())
    fields.wrong("seed", "an integer from 0 to 2^64 - 1", object["seed"]);
  c.seed = object["seed"].get<uint64_t>();
  c.B = fields.integer("B");
  c.S = fields.integer("S");
  c.pad = fields.integer("pad");
  c.bias_offset = fields.number("bias_offset");
  if (!(std::fabs(c.bias_offset) <= kMaxBias))
    fields.wrong("bias_offset", "at most 2^20 in magnitude", object["bias_offset"]);
  if (c.B < 1 || c.B > kMaxTokens) fields.wrong("B", "1.." + std::to_string(kMaxTokens), c.B);
  if (c.S < kLeastTokens || c.S > kMaxTokens / c.B)
    fields.wrong("S", "at least 2, and B * S at most " + std::to_string(kMaxTokens) + " tokens",
                 c.S);
  if (c.pad < 0 || c.pad >= c.S)
    fields.wrong("pad", "0.." + std::to_string(c.S - 1) + ", less than S", c.pad);
  read_chunks(fields, object["chunks"], c);
  read_extras(object, c, where);
}

/// {"eos": ID, "steps": N}.
Decoding read_decoding(const Json& object, const std::string& where) {
  if (!object.is_object())
    refuse(
        {.where = where, .what = "case.decoding", .expected = "an object", .got = kind_of(object)});
  const Fields fields(object, where, "case.decoding.");
  return {.steps = fields.integer("steps"), .eos = fields.integer("eos")};
}

Case read_listed(const Json& entry, const std::string& list) {
  const std::string where = list + ": " + entry.value("name", "a case without a name");
  check_keys(entry, kListKeys, where);
  const Fields fields(entry, where, "case.");
  Case c;
  c.name = fields.text("name");
  read_model(entry, c, where);
  read_shape(entry, c, where);
  c.mask_given = fields.boolean_or("mask_given", true);
  c.sparse = fields.boolean_or("sparse", true);
  c.training = fields.boolean_or("training", false);
  if (const Json* decoding = fields.find("decoding")) c.decoding = read_decoding(*decoding, where);
  c.golden = fields.text("golden");
  c.purpose = fields.text("purpose");
  return c;
}

std::vector<Case> read_cases() {
  const fs::path path = home() / "configs" / "cases.json";
  const Json list = parse_json(read_file(path, kCaseLimit), path.string());
  if (!list.is_object() || list.value("version", 0) != 1 || !list.contains("cases") ||
      !list["cases"].is_array())
    refuse({.where = path.string(),
            .what = "list",
            .expected = "version 1 and a list of cases",
            .got = "neither"});
  std::vector<Case> out;
  for (const Json& entry : list["cases"]) out.push_back(read_listed(entry, path.string()));
  return out;
}

const Case* listed_case(const std::string& name) {
  const auto& all = cases();
  const auto it =
      std::find_if(all.begin(), all.end(), [&name](const Case& c) { return c.name == name; });
  return it == all.end() ? nullptr : &*it;
}

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const Case& c : cases()) names.push_back(c.name);
  return names;
}

std::string did_you_mean(const std::string& near) {
  return near.empty() ? "" : "did you mean " + near + "?";
}

/// sha256 of a user's batch file, in lower-case hex.
void read_batch_digest(const Json& object, Case& c, const std::string& where) {
  if (!object.contains("batch")) return;
  constexpr size_t kHexDigits = 64;
  const Fields fields(object, where, "case.");
  c.batch = fields.text("batch");
  if (c.batch.size() != kHexDigits ||
      c.batch.find_first_not_of("0123456789abcdef") != std::string::npos)
    fields.wrong("batch", "64 hex digits", object["batch"]);
}

/// `mask` and `name` of dsv32_case.json; without them a listed case of the same numbers gives both.
void read_identity(const Json& object, Case& c, const std::string& where) {
  if (object.contains("mask")) {
    const Json& mask = object["mask"];
    if (mask != "given" && mask != "none")
      Fields(object, where, "case.").wrong("mask", "given or none", mask);
    c.mask_given = mask == "given";
  }
  const std::string canonical = case_json(c);
  for (const Case& listed : cases()) {
    if (case_json(listed) != canonical) continue;
    if (object.contains("mask") && listed.mask_given != c.mask_given) continue;
    c = listed;
    return;
  }
  c.name = "case-" + sha256_hex(canonical.data(), canonical.size()).substr(0, kNameDigits);
}

/// "my-model" for my-model/config.json and for my-model.json; of a text its digest.
std::string name_of_config(const std::string& path_or_json) {
  if (path_or_json.starts_with('{'))
    return "config-" + sha256_hex(path_or_json.data(), path_or_json.size()).substr(0, kNameDigits);
  const fs::path file = fs::weakly_canonical(config_path(path_or_json));
  return (file.stem() == "config" ? file.parent_path().filename() : file.stem()).string();
}

Case default_case(const std::string& path) {
  constexpr int64_t kRows = 2, kPad = 5, kShortest = 33, kBeyond = 32;
  Case c;
  c.config = path.starts_with('{') ? parse_config(path, "--config") : read_config(path);
  c.config_name = path;
  c.name = name_of_config(path) + "-default";
  c.overrides_json = "{}";
  c.B = kRows;
  const int64_t wanted = std::max(kShortest, 2 * c.config.index_topk + kBeyond);
  c.S = std::min({wanted, c.config.max_position_embeddings, kMaxTokens / kRows});
  c.pad = std::min(kPad, c.S - 1);
  if (c.S < kLeastTokens)
    refuse({.where = path.substr(0, path.find('{')),
            .what = "max_position_embeddings",
            .expected = "at least two positions, so that one token predicts another",
            .got = std::to_string(c.config.max_position_embeddings)});
  c.sparse = exercises_selection(c);
  c.made_up = true;
  c.golden = "none";
  c.purpose = "default case of a config by path";
  return c;
}

}  // namespace

const std::vector<Case>& cases() {
  static const std::vector<Case> all = read_cases();
  return all;
}

const Case& find_case(const std::string& name) {
  if (const Case* c = listed_case(name)) return *c;
  throw Error(ExitCode::usage, {.where = "--case",
                                .what = "case",
                                .expected = "a case of configs/cases.json",
                                .got = printable(name),
                                .hint = did_you_mean(nearest(name, case_names()))});
}

Case case_of_words(const std::string& name_or_json) {
  return name_or_json.starts_with('{') ? case_from_text(name_or_json, "--case")
                                       : find_case(name_or_json);
}

Case case_of_config(const std::string& name_path_or_json, uint64_t seed) {
  Case c = default_case(name_path_or_json);
  c.seed = seed;
  return c;
}

std::vector<Case> cases_of_config(const std::string& name_or_path) {
  if (!is_config_name(name_or_path)) return {default_case(name_or_path)};
  std::vector<Case> out;
  // A variant without a golden, as full-short, stands in for its config and is named by --case.
  const auto stands_in = [](const Case& c) {
    return c.golden == "none" && c.name != c.config_name;
  };
  for (const Case& c : cases())
    if (c.config_name == name_or_path && !c.training && !stands_in(c)) out.push_back(c);
  return out;
}

Case case_from_text(const std::string& text, const std::string& where) {
  if (!text.starts_with('{')) {
    if (const Case* c = listed_case(text)) return *c;
    refuse({.where = where,
            .what = "case",
            .expected = "a case of configs/cases.json, or a whole case as JSON",
            .got = printable(text),
            .hint = did_you_mean(nearest(text.substr(0, 100), case_names()))});
  }
  const Json object = parse_json(text, where);
  check_keys(object, kTraceKeys, where);
  Case c;
  read_model(object, c, where);
  read_shape(object, c, where);
  read_batch_digest(object, c, where);
  c.sparse = exercises_selection(c);
  c.made_up = true;
  c.golden = "none";
  c.purpose = "a case of its own";
  read_identity(object, c, where);
  return c;
}

std::optional<Case> case_of_checkpoint(const fs::path& dir) {
  const fs::path path = dir / kCaseFile;
  std::error_code error;
  if (!fs::exists(path, error)) return std::nullopt;
  return case_from_text(read_file(path, kCaseLimit), path.string());
}

Case case_from_metadata(const std::string& text) { return case_from_text(text, "case"); }

namespace {

Json edit_json(const WeightEdit& edit) {
  Json out = {{"name", edit.name}};
  if (edit.row) out["row"] = *edit.row;
  if (edit.column) out["column"] = *edit.column;
  if (edit.scale != 1) out["scale"] = edit.scale;
  if (edit.add != 0) out["add"] = edit.add;
  return out;
}

void put_extras(const Case& c, Json& out) {
  for (const WeightEdit& edit : c.edits) out["edits"].push_back(edit_json(edit));
  if (c.pad_side == PadSide::right) out["pad_side"] = "right";
  if (c.position_offset != 0) out["position_offset"] = c.position_offset;
  if (c.config_style != 4) out["config_style"] = c.config_style;
  if (c.fp8) out["weights"] = "synthetic-fp8";
}

}  // namespace

std::string case_json(const Case& c) {
  const bool shipped = is_config_name(c.config_name);
  Json out = {{"config", shipped ? Json(c.config_name) : config_to_json(c.config, "float32")},
              {"overrides", shipped ? parse_json(c.overrides_json, "overrides") : Json::object()},
              {"seed", c.seed},
              {"B", c.B},
              {"S", c.S},
              {"pad", c.pad},
              {"bias_offset", c.bias_offset},
              {"chunks", c.chunks}};
  put_extras(c, out);
  if (!c.batch.empty()) out["batch"] = c.batch;
  return canonical_json(out);
}

std::string case_metadata(const Case& c) {
  const Case* listed = listed_case(c.name);
  const bool same =
      listed && case_json(*listed) == case_json(c) && listed->mask_given == c.mask_given;
  return same ? c.name : case_json(c);
}

}  // namespace dsv32::io
