#include <limits>
#include <nlohmann/json.hpp>

#include "harness/report/report.h"
#include "src/io/text.h"

/// Reading of report.json: refuses what docs/report.schema.json does not allow.
namespace dsv32::harness {
namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& where, const std::string& what,
                         const std::string& expected, const std::string& got) {
  throw Error(ExitCode::artefact, {.where = where,
                                   .what = io::printable(what),
                                   .expected = expected,
                                   .got = io::printable(got),
                                   .hint = "docs/report.schema.json tells the format"});
}

/// One JSON object with the place it stands at, for errors.
class Reader {
 public:
  Reader(const Json& json, std::string where, std::string path)
      : json_(json), where_(std::move(where)), path_(std::move(path)) {
    if (!json.is_object()) refuse(where_, path_, "an object", json.type_name());
  }

  const Json& at(const std::string& key) const {
    const auto it = json_.find(key);
    if (it == json_.end()) refuse(where_, path_ + "." + key, "this field", "none");
    return *it;
  }

  std::string text(const std::string& key) const {
    const Json& value = at(key);
    if (!value.is_string()) refuse(where_, path_ + "." + key, "a string", value.type_name());
    return value.get<std::string>();
  }

  int64_t integer(const std::string& key) const { return integer(at(key), path_ + "." + key); }

  std::vector<double> reals(const std::string& key) const {
    std::vector<double> values;
    for (const Json& item : array(key)) values.push_back(real(item, path_ + "." + key));
    return values;
  }

  std::vector<std::pair<std::string, std::string>> text_pairs() const {
    std::vector<std::pair<std::string, std::string>> values;
    for (const auto& [key, value] : json_.items()) values.emplace_back(key, text(key));
    return values;
  }

  double real(const std::string& key) const { return real(at(key), path_ + "." + key); }

  std::vector<std::string> texts(const std::string& key) const {
    std::vector<std::string> values;
    for (const Json& item : array(key)) {
      if (!item.is_string()) refuse(where_, path_ + "." + key, "strings", item.type_name());
      values.push_back(item.get<std::string>());
    }
    return values;
  }

  std::vector<int64_t> integers(const std::string& key) const {
    std::vector<int64_t> values;
    for (const Json& item : array(key)) values.push_back(integer(item, path_ + "." + key));
    return values;
  }

  template <typename Read>
  auto items(const std::string& key, Read&& read) const {
    std::vector<decltype(read(std::declval<const Reader&>()))> values;
    const Json& list = array(key);
    for (size_t i = 0; i < list.size(); ++i) {
      values.push_back(
          read(Reader(list[i], where_, path_ + "." + key + "[" + std::to_string(i) + "]")));
    }
    return values;
  }

  Reader object(const std::string& key) const { return Reader(at(key), where_, path_ + "." + key); }

  std::map<std::string, std::string> text_map() const {
    std::map<std::string, std::string> values;
    for (const auto& [key, value] : json_.items()) values[key] = text(key);
    return values;
  }

  /// The value of an enumeration by its printed name.
  template <typename Enum>
  Enum choice(const std::string& key, std::initializer_list<Enum> values) const {
    const std::string name = text(key);
    std::string known;
    for (Enum value : values) {
      if (to_string(value) == name) return value;
      known += (known.empty() ? "" : ", ") + std::string(to_string(value));
    }
    refuse(where_, path_ + "." + key, "one of " + known, name);
  }

  const std::string& where() const { return where_; }

 private:
  const Json& array(const std::string& key) const {
    const Json& value = at(key);
    if (!value.is_array()) refuse(where_, path_ + "." + key, "an array", value.type_name());
    return value;
  }

  int64_t integer(const Json& value, const std::string& path) const {
    const bool fits = value.is_number_integer() &&
                      !(value.is_number_unsigned() &&
                        value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()});
    if (!fits) refuse(where_, path, "an integer", value.dump().substr(0, 40));
    return value.get<int64_t>();
  }

  double real(const Json& value, const std::string& path) const {
    if (value.is_number()) return value.get<double>();
    const std::string name = value.is_string() ? value.get<std::string>() : "";
    if (name == "nan") return std::numeric_limits<double>::quiet_NaN();
    if (name == "inf") return std::numeric_limits<double>::infinity();
    if (name == "-inf") return -std::numeric_limits<double>::infinity();
    refuse(where_, path, "a number, \"nan\", \"inf\" or \"-inf\"", value.dump().substr(0, 40));
  }

  const Json& json_;
  std::string where_, path_;
};

Measure read_measure(const Reader& r) {
  return {.metric = r.text("metric"),
          .measured = r.real("measured"),
          .limit = r.real("limit"),
          .basis = r.text("basis")};
}

Worst read_worst(const Reader& r) {
  return {.index = r.integers("index"),
          .row = r.integer("row"),
          .expected = r.real("expected"),
          .got = r.real("got")};
}

Subject read_subject(const Reader& r) {
  return {.party = r.choice("party",
                            {Party::golden, Party::reference, Party::optimized, Party::candidate}),
          .label = r.text("label"),
          .against = r.choice("against", {Against::oracle, Against::golden, Against::trace})};
}

PlainError read_plain(const Reader& r) {
  return {.relative = r.real("relative"), .allowed = r.real("allowed")};
}

Picture read_picture(const Reader& r) {
  return {.rows = r.text("rows"),
          .columns = r.text("columns"),
          .row_count = r.integer("row_count"),
          .column_count = r.integer("column_count"),
          .batch = r.integer("batch"),
          .cells = r.texts("cells")};
}

Curve read_curve(const Reader& r) {
  return {.values = r.reals("values"),
          .expected = r.reals("expected"),
          .low = r.reals("low"),
          .high = r.reals("high")};
}

Choices read_choices(const Reader& r) {
  return {.rows = r.integer("rows"),
          .determined = r.integer("determined"),
          .differing = r.integer("differing")};
}

Verdict read_verdict(const Reader& r) {
  Verdict v;
  v.case_name = r.text("case");
  v.suite = r.text("suite");
  v.subject = read_subject(r.object("subject"));
  v.tap = r.text("tap");
  if (!r.at("layer").is_null()) v.layer = r.integer("layer");
  v.mode = r.choice("mode", {Mode::staged, Mode::forced, Mode::free, Mode::exact});
  v.trust = r.choice("trust", {Trust::pass, Trust::fail, Trust::undecided, Trust::vacuous,
                               Trust::missing, Trust::skipped});
  v.checked = r.integer("checked");
  v.measures = r.items("measures", read_measure);
  if (!r.at("worst").is_null()) v.worst = read_worst(r.object("worst"));
  if (!r.at("plain").is_null()) v.plain = read_plain(r.object("plain"));
  if (!r.at("picture").is_null()) v.picture = read_picture(r.object("picture"));
  if (!r.at("curve").is_null()) v.curve = read_curve(r.object("curve"));
  if (!r.at("choices").is_null()) v.choices = read_choices(r.object("choices"));
  v.structure = r.text("structure");
  v.note = r.text("note");
  return v;
}

RowShare read_share(const Reader& r) { return {.rows = r.integer("rows"), .of = r.integer("of")}; }

Severity read_severity(const Reader& r) {
  return {.logits = r.real("logits"),
          .loss_before = r.real("loss_before"),
          .loss_after = r.real("loss_after"),
          .other_top1 = read_share(r.object("other_top1")),
          .other_keys = read_share(r.object("other_keys")),
          .other_experts = read_share(r.object("other_experts"))};
}

Defect read_defect(const Reader& r) {
  Defect d;
  d.name = r.text("name");
  d.words = r.text("words");
  d.evidence = r.text("evidence");
  d.taps = r.texts("taps");
  d.layers = r.integers("layers");
  if (!r.at("severity").is_null()) d.severity = read_severity(r.object("severity"));
  return d;
}

Finding read_finding(const Reader& r) {
  Finding f;
  f.case_name = r.text("case");
  f.suite = r.text("suite");
  f.subject = read_subject(r.object("subject"));
  f.fault = r.choice("fault", {Fault::none, Fault::candidate, Fault::optimized, Fault::reference,
                               Fault::golden, Fault::configuration});
  f.first_tap = r.text("first_tap");
  f.headline = r.text("headline");
  f.causes = r.texts("causes");
  f.profile = r.text("profile");
  f.defects = r.items("defects", read_defect);
  return f;
}

Provenance read_provenance(const Reader& r) {
  return {.case_name = r.text("case"),
          .subject = read_subject(r.object("subject")),
          .facts = r.object("facts").text_pairs()};
}

Figure read_figure(const Reader& r) {
  return {.case_name = r.text("case"),
          .suite = r.text("suite"),
          .name = r.text("name"),
          .value = r.real("value")};
}

AnswerScore read_score(const Reader& r) {
  return {.tokens = r.integer("tokens"), .loss = r.real("loss"), .top1 = r.real("top1")};
}

/// Its sum and the perplexities follow.
Answers read_answers(const Reader& r) {
  return {.case_name = r.text("case"),
          .subject = read_subject(r.object("subject")),
          .examples = r.items("examples", read_score)};
}

Cost read_cost(const Reader& r) {
  return {.case_name = r.text("case"),
          .suite = r.text("suite"),
          .seconds = r.real("seconds"),
          .tokens_per_second = r.real("tokens_per_second"),
          .peak_gib = r.real("peak_gib")};
}

PassCost read_pass(const Reader& r) {
  return {.case_name = r.text("case"),
          .what = r.text("what"),
          .layers = r.integer("layers"),
          .seconds = r.real("seconds")};
}

Json parsed(const std::string& text, const std::string& where) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    refuse(where, "report", "JSON", error.what());
  }
}

void check_format(const Reader& r) {
  if (r.text("format") != kReportFormat)
    refuse(r.where(), "report.format", kReportFormat, r.text("format"));
  if (r.integer("schema_version") != kReportSchemaVersion) {
    refuse(r.where(), "report.schema_version", std::to_string(kReportSchemaVersion),
           std::to_string(r.integer("schema_version")));
  }
}

}  // namespace

Report parse_report(const std::string& json, const std::string& where) {
  const Json root = parsed(json, where);
  const Reader r(root, where, "report");
  check_format(r);
  Report report;
  report.tool_version = r.text("tool_version");
  report.command = r.text("command");
  report.suites = r.texts("suites");
  report.cases = r.texts("cases");
  report.environment = r.object("environment").text_map();
  report.judged = r.items("judged", read_provenance);
  report.warnings = r.texts("warnings");
  report.not_tested = r.texts("not_tested");
  report.findings = r.items("findings", read_finding);
  report.verdicts = r.items("verdicts", read_verdict);
  report.figures = r.items("figures", read_figure);
  if (root.contains("answers")) report.answers = r.items("answers", read_answers);
  report.seconds = r.object("timing").real("seconds");
  report.costs = r.object("timing").items("costs", read_cost);
  if (root.at("timing").contains("passes"))
    report.passes = r.object("timing").items("passes", read_pass);
  const int exit_code = static_cast<int>(report.exit_code());
  if (r.integer("exit_code") != exit_code) {
    refuse(where, "report.exit_code", std::to_string(exit_code) + " from its verdicts",
           std::to_string(r.integer("exit_code")));
  }
  return report;
}

Report validated_report(const std::string& json, const std::string& where) {
  Report report = parse_report(json, where);
  // Everything that was read is written again; what differs was not read.
  const nlohmann::json given = nlohmann::json::parse(json),
                       read = nlohmann::json::parse(to_json(report));
  const nlohmann::json patch = nlohmann::json::diff(given, read);
  if (patch.empty()) return report;
  const nlohmann::json& first = patch.front();
  const std::string path = first.at("path").get<std::string>();
  const std::string got = first.at("op") == "remove" ? "a field that the format does not have"
                                                     : "another value than follows from the rest";
  refuse(where, "report" + path, "docs/report.schema.json", got);
}

}  // namespace dsv32::harness
