#include "harness/report/problems.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "harness/report/text.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

struct Weighed {
  Problem problem;
  double weight = 0;
};

const Verdict* failure_of(const Group& group, const std::vector<std::string>& taps) {
  const Verdict* found = nullptr;
  for (const Verdict* v : group.verdicts) {
    if (v->trust != Trust::fail || std::find(taps.begin(), taps.end(), v->tap) == taps.end())
      continue;
    if (found == nullptr) found = v;
    if (v->picture) return v;
  }
  return found != nullptr ? found : group.first_failure;
}

/// The names of bugs that give the same numbers: "a or b or 3 more" is a and b.
std::set<std::string> alternatives(const std::string& name) {
  constexpr std::string_view kOr = " or ";
  std::set<std::string> names;
  size_t begin = 0;
  for (size_t at = name.find(kOr); at != std::string::npos; at = name.find(kOr, begin)) {
    names.insert(name.substr(begin, at - begin));
    begin = at + kOr.size();
  }
  const std::string last = name.substr(begin);
  if (begin == 0 || !last.ends_with(" more")) names.insert(last);
  return names;
}

void merge(std::vector<Weighed>& all, Weighed one) {
  const auto same = std::find_if(all.begin(), all.end(), [&](const Weighed& w) {
    return is_same_problem(w.problem, one.problem);
  });
  if (same == all.end()) return all.push_back(std::move(one));
  // Where one case cannot tell two bugs apart, another case may.
  const Problem& clearer =
      alternatives(one.problem.name).size() < alternatives(same->problem.name).size()
          ? one.problem
          : same->problem;
  const std::string words = clearer.words, name = clearer.name;
  same->problem.words = one.problem.words = words;
  same->problem.name = one.problem.name = name;
  std::vector<const Group*>& places = same->problem.groups;
  if (one.weight > same->weight) {
    one.problem.groups.insert(one.problem.groups.end(), places.begin(), places.end());
    *same = std::move(one);
  } else {
    places.push_back(one.problem.groups.front());
  }
}

Weighed of_defect(const Group& group, const Finding& finding, const Defect& defect) {
  Weighed out{.weight = defect.severity ? defect.severity->weight() : 0};
  out.problem = {.words = defect.words, .name = defect.name, .finding = &finding};
  out.problem.defect = &defect;
  out.problem.verdict = failure_of(group, defect.taps);
  out.problem.groups = {&group};
  if (!defect.severity) return out;
  out.problem.severity = in_words(*defect.severity);
  if (out.problem.severity.empty()) out.problem.severity = "logits and loss do not change";
  return out;
}

Weighed of_finding(const Group& group, const Finding& finding) {
  const bool crash = finding.first_tap == rule_name("run.finished");
  Weighed out{.weight = crash ? std::numeric_limits<double>::infinity() : 0};
  out.problem = {.words = finding.headline, .finding = &finding};
  if (out.problem.words.empty()) out.problem.words = "a check fails: " + finding.first_tap;
  out.problem.verdict = group.first_failure;
  out.problem.groups = {&group};
  return out;
}

std::string who(const Problem& problem) {
  const Subject& subject = problem.finding->subject;
  return printable(
      problem.groups.size() > 1 ? std::string(to_string(subject.party)) : subject.label, 80);
}

/// The candidates, or all parties where there is none.
std::string judged_text(const std::vector<Group>& groups) {
  std::vector<std::string> candidates;
  std::set<std::string> cases;
  for (const Group& g : groups) {
    cases.insert(g.case_name);
    const std::string label = printable(g.subject.label, 80);
    if (g.subject.party != Party::candidate) continue;
    if (std::find(candidates.begin(), candidates.end(), label) == candidates.end())
      candidates.push_back(label);
  }
  const std::string where = cases.size() == 1 ? "case " + printable(*cases.begin(), 60)
                                              : std::to_string(cases.size()) + " cases";
  if (candidates.empty()) return "everything judged in " + where;
  if (candidates.size() == 1) return candidates.front() + " in " + where;
  return "every one of " + std::to_string(candidates.size()) + " candidates in " + where;
}

std::string fail_sentence(const std::vector<Problem>& problems) {
  if (problems.empty()) return "A check fails.";
  const Problem& first = problems.front();
  const std::string words = printable(first.words, 300);
  if (first.finding->first_tap == rule_name("run.finished")) return who(first) + " " + words + ".";
  std::string text = who(first) + " is wrong";
  if (first.finding->fault == Fault::golden) text = "The golden and the specification disagree";
  if (first.finding->fault == Fault::configuration)
    text = "Two witnesses agree against the specification";
  if (problems.size() > 1) {
    text += " in " + std::to_string(problems.size()) + " ways, the gravest: " + words;
  } else {
    text += ": " + words;
  }
  return text + ".";
}

std::string weak_sentence(const Counts& counts, const std::vector<Group>& groups) {
  const std::string whom = judged_text(groups);
  if (counts.undecided > 0)
    return "It cannot be told whether " + whom +
           " is right: " + counted(counts.undecided, "check") +
           " beyond rounding where a near-tie may have turned, and the decisions are not in the "
           "file.";
  if (counts.missing > 0)
    return "Not all of " + whom + " could be judged: " + counted(counts.missing, "check") +
           " without evidence.";
  return "No check of " + whom + " fails, but " + counted(counts.vacuous, "check") +
         " could not have failed.";
}

}  // namespace

bool is_same_problem(const Problem& a, const Problem& b) {
  if (a.finding->subject.party != b.finding->subject.party) return false;
  if (a.name.empty() || b.name.empty()) return a.name == b.name && a.words == b.words;
  const std::set<std::string> left = alternatives(a.name), right = alternatives(b.name);
  return std::any_of(left.begin(), left.end(),
                     [&](const std::string& name) { return right.contains(name); });
}

std::vector<Problem> problems_of(const std::vector<Group>& groups) {
  std::vector<Weighed> all;
  for (const Group& group : groups) {
    for (const Finding* finding : group.findings) {
      for (const Defect& defect : finding->defects) merge(all, of_defect(group, *finding, defect));
      const bool fails = finding->fault != Fault::none || !finding->first_tap.empty();
      if (fails && finding->defects.empty()) merge(all, of_finding(group, *finding));
    }
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Weighed& a, const Weighed& b) { return a.weight > b.weight; });
  std::vector<Problem> problems;
  for (Weighed& one : all) problems.push_back(std::move(one.problem));
  return problems;
}

std::string verdict_sentence(const Report& report, const std::vector<Group>& groups,
                             const std::vector<Problem>& problems) {
  const Counts counts = count(report.verdicts);
  if (report.exit_code() == ExitCode::parity) return fail_sentence(problems);
  if (counts.executed() + counts.undecided == 0) return "Nothing was checked.";
  if (report.exit_code() != ExitCode::ok) return weak_sentence(counts, groups);
  std::string whom = judged_text(groups);
  whom[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(whom[0])));
  return whom + " computes the model: each of " + counted(counts.executed(), "check") +
         " is within rounding.";
}

std::string layers_text(const Defect& defect) {
  if (defect.layers.empty()) return "all layers";
  std::string text = defect.layers.size() == 1 ? "layer " : "layers ";
  for (size_t i = 0; i < defect.layers.size(); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(defect.layers[i]);
  return text + " only";
}

std::string places_text(const std::vector<const Group*>& groups, size_t shown) {
  std::vector<std::string> names;
  for (const Group* g : groups) {
    std::string name = printable(g->case_name, 60);
    if (!g->suite.empty()) name += " " + printable(g->suite, 60);
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), shown); ++i)
    text += (i == 0 ? "" : ", ") + names[i];
  if (names.size() > shown) text += " and " + std::to_string(names.size() - shown) + " more";
  return text;
}

FactRows judge_facts(const Report& report) {
  FactRows rows = {{"dsv32-verify", report.tool_version}};
  for (const char* name : {"commit", "data", "torch", "arithmetic", "device"}) {
    const auto found = report.environment.find(name);
    if (found != report.environment.end()) rows.emplace_back(name, found->second);
  }
  rows.emplace_back("report schema", std::to_string(kReportSchemaVersion));
  return rows;
}

}  // namespace dsv32::harness
