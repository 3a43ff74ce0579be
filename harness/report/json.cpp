#include <cmath>
#include <nlohmann/json.hpp>

#include "harness/report/groups.h"
#include "harness/report/report.h"
#include "src/io/text.h"

/// report.json. Its shape is docs/report.schema.json; both change together with
/// kReportSchemaVersion.
namespace dsv32::harness {
namespace {

using Json = nlohmann::ordered_json;

// --- writing ------------------------------------------------------------------------------------

/// JSON has no NaN and no infinity: they become strings.
Json number_json(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return value;
}

Json measure_json(const Measure& m) {
  return {{"metric", m.metric},
          {"measured", number_json(m.measured)},
          {"limit", number_json(m.limit)},
          {"basis", m.basis}};
}

Json worst_json(const Worst& w) {
  return {{"index", w.index},
          {"row", w.row},
          {"expected", number_json(w.expected)},
          {"got", number_json(w.got)}};
}

Json subject_json(const Subject& s) {
  return {{"party", std::string(to_string(s.party))},
          {"label", s.label},
          {"against", std::string(to_string(s.against))}};
}

Json picture_json(const Picture& p) {
  return {{"rows", p.rows},           {"columns", p.columns},
          {"row_count", p.row_count}, {"column_count", p.column_count},
          {"batch", p.batch},         {"cells", p.cells}};
}

Json numbers_json(const std::vector<double>& values) {
  Json list = Json::array();
  for (const double value : values) list.push_back(number_json(value));
  return list;
}

Json curve_json(const Curve& c) {
  return {{"values", numbers_json(c.values)},
          {"expected", numbers_json(c.expected)},
          {"low", numbers_json(c.low)},
          {"high", numbers_json(c.high)}};
}

Json verdict_json(const Verdict& v) {
  Json measures = Json::array();
  for (const Measure& m : v.measures) measures.push_back(measure_json(m));
  Json j;
  j["case"] = v.case_name;
  j["suite"] = v.suite;
  j["subject"] = subject_json(v.subject);
  j["tap"] = v.tap;
  j["layer"] = v.layer ? Json(*v.layer) : Json(nullptr);
  j["mode"] = std::string(to_string(v.mode));
  j["trust"] = std::string(to_string(v.trust));
  j["checked"] = v.checked;
  j["measures"] = std::move(measures);
  j["worst"] = v.worst ? worst_json(*v.worst) : Json(nullptr);
  j["plain"] = v.plain ? Json{{"relative", number_json(v.plain->relative)},
                              {"allowed", number_json(v.plain->allowed)}}
                       : Json(nullptr);
  j["picture"] = v.picture ? picture_json(*v.picture) : Json(nullptr);
  j["curve"] = v.curve ? curve_json(*v.curve) : Json(nullptr);
  j["choices"] = v.choices ? Json{{"rows", v.choices->rows},
                                  {"determined", v.choices->determined},
                                  {"differing", v.choices->differing}}
                           : Json(nullptr);
  j["structure"] = v.structure;
  j["note"] = v.note;
  return j;
}

Json share_json(const RowShare& share) { return {{"rows", share.rows}, {"of", share.of}}; }

Json severity_json(const Severity& s) {
  return {
      {"logits", number_json(s.logits)},         {"loss_before", number_json(s.loss_before)},
      {"loss_after", number_json(s.loss_after)}, {"other_top1", share_json(s.other_top1)},
      {"other_keys", share_json(s.other_keys)},  {"other_experts", share_json(s.other_experts)}};
}

Json defect_json(const Defect& d) {
  return {{"name", d.name},
          {"words", d.words},
          {"evidence", d.evidence},
          {"taps", d.taps},
          {"layers", d.layers},
          {"severity", d.severity ? severity_json(*d.severity) : Json(nullptr)}};
}

Json finding_json(const Finding& f) {
  Json defects = Json::array();
  for (const Defect& defect : f.defects) defects.push_back(defect_json(defect));
  return {{"case", f.case_name},
          {"suite", f.suite},
          {"subject", subject_json(f.subject)},
          {"fault", std::string(to_string(f.fault))},
          {"first_tap", f.first_tap},
          {"headline", f.headline},
          {"causes", f.causes},
          {"profile", f.profile},
          {"defects", defects}};
}

Json provenance_json(const Provenance& p) {
  Json facts = Json::object();
  for (const auto& [name, value] : p.facts) facts[name] = value;
  return {{"case", p.case_name}, {"subject", subject_json(p.subject)}, {"facts", facts}};
}

Json figure_json(const Figure& f) {
  return {
      {"case", f.case_name}, {"suite", f.suite}, {"name", f.name}, {"value", number_json(f.value)}};
}

Json score_json(const AnswerScore& score) {
  return {{"tokens", score.tokens},
          {"loss", number_json(score.loss)},
          {"perplexity", number_json(score.perplexity())},
          {"top1", number_json(score.top1)}};
}

Json answers_json(const Answers& a) {
  Json examples = Json::array();
  for (const AnswerScore& score : a.examples) examples.push_back(score_json(score));
  return {{"case", a.case_name},
          {"subject", subject_json(a.subject)},
          {"all", score_json(a.all())},
          {"examples", examples}};
}

Json cost_json(const Cost& c) {
  return {{"case", c.case_name},
          {"suite", c.suite},
          {"seconds", number_json(c.seconds)},
          {"tokens_per_second", number_json(c.tokens_per_second)},
          {"peak_gib", number_json(c.peak_gib)}};
}

Json pass_json(const PassCost& p) {
  return {{"case", p.case_name},
          {"what", p.what},
          {"layers", p.layers},
          {"seconds", number_json(p.seconds)}};
}

Json counts_json(const Counts& c) {
  return {{"pass", c.pass},       {"fail", c.fail},       {"undecided", c.undecided},
          {"vacuous", c.vacuous}, {"missing", c.missing}, {"skipped", c.skipped}};
}

Json report_json(const Report& r) {
  Json j;
  j["format"] = kReportFormat;
  j["schema_version"] = kReportSchemaVersion;
  j["tool_version"] = r.tool_version;
  j["command"] = r.command;
  j["exit_code"] = static_cast<int>(r.exit_code());
  j["counts"] = counts_json(count(r.verdicts));
  j["suites"] = r.suites;
  j["cases"] = r.cases;
  j["environment"] = r.environment;
  j["judged"] = Json::array();
  for (const Provenance& p : r.judged) j["judged"].push_back(provenance_json(p));
  j["warnings"] = r.warnings;
  j["not_tested"] = r.not_tested;
  j["findings"] = Json::array();
  for (const Finding& f : r.findings) j["findings"].push_back(finding_json(f));
  j["verdicts"] = Json::array();
  for (const Verdict& v : r.verdicts) j["verdicts"].push_back(verdict_json(v));
  j["figures"] = Json::array();
  for (const Figure& f : r.figures) j["figures"].push_back(figure_json(f));
  for (const Answers& a : r.answers) j["answers"].push_back(answers_json(a));
  j["timing"] = {{"seconds", number_json(r.seconds)}, {"costs", Json::array()}};
  for (const Cost& c : r.costs) j["timing"]["costs"].push_back(cost_json(c));
  for (const PassCost& p : r.passes) j["timing"]["passes"].push_back(pass_json(p));
  return j;
}

/// ASCII only, so that no byte of a file name can steer a terminal or break UTF-8.
std::string dumped(const Json& j) { return j.dump(-1, ' ', true, Json::error_handler_t::replace); }

/// One line per finding and per verdict: two reports can be compared with diff.
std::string dumped_lines(const Json& array) {
  if (array.empty()) return "[]";
  std::string text = "[";
  for (size_t i = 0; i < array.size(); ++i) text += (i == 0 ? "\n  " : ",\n  ") + dumped(array[i]);
  return text + "\n ]";
}

}  // namespace

std::string to_json(const Report& report) {
  const Json json = report_json(report);
  std::string text = "{";
  for (const auto& [key, value] : json.items()) {
    const bool lines = key == "findings" || key == "verdicts" || key == "figures" ||
                       key == "judged" || key == "answers";
    text += (text.size() == 1 ? "\n " : ",\n ") + dumped(key) + ": ";
    text += lines ? dumped_lines(value) : dumped(value);
  }
  return text + "\n}\n";
}

}  // namespace dsv32::harness
