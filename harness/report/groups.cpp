#include "harness/report/groups.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "harness/report/text.h"
#include "src/model/check_name.h"
#include "src/model/trace.h"

namespace dsv32::harness {
namespace {

/// Same name in another mode is the same tap.
void count_names(Group& group) {
  std::set<std::string> taps, gradients;
  for (const Verdict* v : group.verdicts) {
    if (v->trust == Trust::skipped || v->trust == Trust::missing) continue;
    const std::optional<CheckName> check = parse_check(v->tap);
    if (!check || check->scope != CheckScope::model) continue;
    (is_gradient_check(v->tap) ? gradients : taps).insert(v->tap);
  }
  group.taps = taps.size();
  group.gradients = gradients.size();
}

void find_first_failure(Group& group) {
  for (const Verdict* v : group.verdicts) {
    if (v->trust != Trust::fail) continue;
    if (group.first_failure == nullptr) group.first_failure = v;
    for (const Finding* f : group.findings) {
      if (!f->first_tap.empty() && f->first_tap == v->tap) {
        group.first_failure = v;
        return;
      }
    }
  }
}

void find_worst(Group& group) {
  for (const Verdict* v : group.verdicts) {
    const bool executed =
        v->trust == Trust::fail || (v->trust == Trust::pass && v->mode != Mode::exact);
    if (v->measures.empty() || !executed) continue;
    if (group.worst == nullptr || v->margin() > group.worst->margin()) group.worst = v;
  }
}

void summarize(Group& group) {
  for (const Verdict* v : group.verdicts) group.counts.add(v->trust);
  count_names(group);
  find_first_failure(group);
  find_worst(group);
}

using GroupIndex = std::map<std::tuple<std::string, std::string, Subject>, size_t>;

/// The group that a verdict or a finding belongs to.
template <typename Item>
Group& group_of(std::vector<Group>& groups, GroupIndex& at, const Item& item) {
  const auto [it, added] =
      at.try_emplace({item.case_name, item.suite, item.subject}, groups.size());
  if (added) {
    groups.emplace_back();
    groups.back().case_name = item.case_name;
    groups.back().suite = item.suite;
    groups.back().subject = item.subject;
  }
  return groups[it->second];
}

bool has_news(const Group& group) {
  const auto tells = [](const Finding* f) {
    return f->fault != Fault::none || !f->headline.empty();
  };
  return std::any_of(group.findings.begin(), group.findings.end(), tells);
}

/// Cases in the order of the report, each in one piece, and in it each suite in one piece.
void gather_cases(std::vector<Group>& groups) {
  std::map<std::string, size_t> cases;
  std::map<std::pair<std::string, std::string>, size_t> suites;
  for (size_t i = 0; i < groups.size(); ++i) {
    cases.try_emplace(groups[i].case_name, i);
    suites.try_emplace({groups[i].case_name, groups[i].suite}, i);
  }
  const auto place = [&](const Group& g) {
    return std::pair(cases.at(g.case_name), suites.at({g.case_name, g.suite}));
  };
  std::stable_sort(groups.begin(), groups.end(),
                   [&](const Group& a, const Group& b) { return place(a) < place(b); });
}

}  // namespace

bool Group::failed() const {
  const auto blames = [](const Finding* f) { return f->fault != Fault::none; };
  return counts.fail > 0 || std::any_of(findings.begin(), findings.end(), blames);
}

bool Group::green() const {
  return !failed() && counts.missing + counts.vacuous + counts.undecided == 0 && counts.pass > 0;
}

std::string Group::state() const {
  if (failed()) return "FAIL";
  if (counts.missing > 0) return "MISSING";
  if (counts.vacuous > 0) return "VACUOUS";
  if (counts.undecided > 0) return "UNDECIDED";
  return counts.pass > 0 ? "PASS" : "SKIPPED";
}

std::vector<Group> group_verdicts(const Report& report) {
  std::vector<Group> groups;
  GroupIndex at;
  for (const Verdict& v : report.verdicts) group_of(groups, at, v).verdicts.push_back(&v);
  for (const Finding& f : report.findings) group_of(groups, at, f).findings.push_back(&f);
  // A finding without checks and without news (everything was filtered out) is not worth a line.
  std::erase_if(groups, [](const Group& g) { return g.verdicts.empty() && !has_news(g); });
  gather_cases(groups);
  for (Group& group : groups) summarize(group);
  return groups;
}

const Measure* worst_measure(const Verdict& verdict) {
  const Measure* worst = nullptr;
  for (const Measure& m : verdict.measures) {
    if (worst == nullptr || m.margin() > worst->margin()) worst = &m;
  }
  return worst;
}

std::vector<const Verdict*> worst_first(const std::vector<const Verdict*>& verdicts) {
  std::vector<const Verdict*> sorted = verdicts;
  std::stable_sort(sorted.begin(), sorted.end(), [](const Verdict* a, const Verdict* b) {
    if (a->mode != b->mode) return a->mode < b->mode;
    if ((a->trust == Trust::fail) != (b->trust == Trust::fail)) return a->trust == Trust::fail;
    return a->margin() > b->margin();
  });
  return sorted;
}

std::vector<const Verdict*> failures(const Group& group) {
  std::vector<const Verdict*> rest, all;
  for (const Verdict* v : group.verdicts) {
    if (v->trust == Trust::fail && v != group.first_failure) rest.push_back(v);
  }
  if (group.first_failure != nullptr) all.push_back(group.first_failure);
  for (const Verdict* v : worst_first(rest)) all.push_back(v);
  return all;
}

std::string measure_text(const Measure& measure) {
  return printable(measure.metric, 60) + " " + number(measure.measured) + " (limit " +
         number(measure.limit) + ")";
}

namespace {

/// What the axes of a tap are called, as many as its elements have indices.
std::vector<std::string> axes_of(const std::string& tap, size_t rank) {
  const auto slope = parse_slope(tap);
  const auto name = slope ? slope : parse_tap(tap);
  if (!name) return {};
  switch (name->info.kind) {
    case TapKind::attention:
      return {"batch", "head", "query", "key"};
    case TapKind::scores:
    case TapKind::keys:
      return {"batch", "query", "key"};
    case TapKind::key:
      return {"batch", "key", "lane"};
    case TapKind::topk:
    case TapKind::experts:
      return {"batch", "token", "place"};
    case TapKind::token:
      if (rank == 4) return {"batch", "token", "head", "lane"};
      return {"batch", "token", "lane"};
    case TapKind::gradient:
      return {"row", "column"};
    default:
      return {};
  }
}

}  // namespace

std::string worst_text(const Verdict& verdict) {
  if (!verdict.worst) return "";
  const Worst& worst = *verdict.worst;
  const std::vector<std::string> axes = axes_of(verdict.tap, worst.index.size());
  std::string text = "[", words;
  for (size_t i = 0; i < worst.index.size(); ++i) {
    text += (i == 0 ? "" : ",") + std::to_string(worst.index[i]);
    if (i < axes.size())
      words += (i == 0 ? "" : ", ") + axes[i] + " " + std::to_string(worst.index[i]);
  }
  text += "]";
  if (!words.empty()) text += " (" + words + ")";
  const auto [expected, got] = numbers_apart(worst.expected, worst.got);
  return text + ": expected " + expected + ", got " + got;
}

std::string inputs_text(const Verdict& verdict) {
  const auto tap = parse_tap(verdict.tap);
  if (!tap || verdict.mode != Mode::staged || tap->info.inputs.empty()) return "";
  std::string text;
  for (const std::string_view input : tap->info.inputs)
    text += (text.empty() ? "reads " : ", ") + std::string(input);
  return text;
}

std::string plain_text(const Verdict& verdict) {
  if (!verdict.plain) return "";
  return percent(verdict.plain->relative) + " off, rounding allows " +
         percent(verdict.plain->allowed);
}

std::string severity_text(const Verdict& verdict) {
  const double value = verdict.margin();
  return std::isinf(value) ? "beyond an exact limit or not a number" : number(value) + " of limit";
}

std::string coverage_text(const Group& group) {
  std::string text;
  const auto add = [&](size_t n, const char* noun) {
    if (n > 0) text += (text.empty() ? "" : ", ") + counted(n, noun);
  };
  if (group.suite.empty()) add(group.taps, "tap");
  if (group.suite.empty()) add(group.gradients, "gradient");
  if (text.empty()) add(group.counts.executed(), "check");
  add(group.counts.fail, "failure");
  if (group.counts.skipped > 0) text += ", " + std::to_string(group.counts.skipped) + " skipped";
  return text.empty() ? "no checks" : text.substr(text.rfind(", ", 0) == 0 ? 2 : 0);
}

std::string subject_text(const Group& group) {
  const Subject& subject = group.subject;
  const std::string suite = group.suite.empty() ? "" : printable(group.suite, 40) + ": ";
  const bool told = subject.against == Against::trace;  // the label names both traces
  const std::string against = told ? "" : " vs " + std::string(to_string(subject.against));
  return suite + printable(subject.label, 80) + against;
}

std::string figures_text(const Report& report, const Group& group) {
  std::string text;
  for (const Figure& f : report.figures) {
    if (f.case_name != group.case_name || f.suite != group.suite) continue;
    text += (text.empty() ? "" : ", ") + printable(f.name, 60) + " " + number(f.value);
  }
  return text;
}

std::string score_text(const AnswerScore& score) {
  if (score.tokens == 0) return "no label counts";
  return "loss " + number(score.loss) + ", perplexity " + number(score.perplexity()) +
         ", best token " + percent(score.top1) + ", " +
         counted(static_cast<size_t>(score.tokens), "token");
}

std::string cost_text(const Report& report, const Group& group) {
  std::string text;
  const auto add = [&](double value, const char* unit) {
    if (value > 0) text += (text.empty() ? "" : ", ") + number(value) + " " + unit;
  };
  for (const Cost& cost : report.costs) {
    if (cost.case_name != group.case_name || cost.suite != group.suite) continue;
    add(cost.seconds, "s");
    add(cost.tokens_per_second, "tokens per second");
    add(cost.peak_gib, "GiB at its peak");
  }
  return text;
}

bool ends_suite(const std::vector<Group>& groups, size_t at) {
  return at + 1 == groups.size() || groups[at + 1].case_name != groups[at].case_name ||
         groups[at + 1].suite != groups[at].suite;
}

std::string verdict_word(const Report& report) {
  switch (report.exit_code()) {
    case ExitCode::ok:
      return "PASS";
    case ExitCode::parity:
      return "FAIL";
    default:
      return count(report.verdicts).executed() == 0 ? "NOTHING CHECKED" : "NOT GREEN";
  }
}

std::string counts_text(const Counts& counts) {
  std::string text = counted(counts.executed(), "check");
  if (counts.fail > 0) text = std::to_string(counts.fail) + " of " + text + " failed";
  const auto add = [&](size_t n, const char* word) {
    if (n > 0) text += ", " + std::to_string(n) + " " + word;
  };
  add(counts.undecided, "undecided");
  add(counts.vacuous, "vacuous");
  add(counts.missing, "missing");
  add(counts.skipped, "skipped");
  return text;
}

std::string repro_command(const Report& report, const Verdict& verdict) {
  std::string command = printable(report.command);
  if (command.empty() || command.find(" -k ") != std::string::npos) return command;
  const bool chosen = command.find(" --suite ") != std::string::npos ||
                      command.find(" --candidate ") != std::string::npos;
  if (!verdict.suite.empty() && !chosen) command += " --suite " + shell_word(verdict.suite);
  return command + " -k " + shell_word(check_path(verdict));
}

std::vector<NoteGroup> notes_of(const Group& group, Trust trust) {
  std::vector<NoteGroup> notes;
  std::map<std::string, size_t> at;
  std::set<std::pair<std::string, std::string>> seen;  // a tap once, whatever its modes
  for (const Verdict* v : group.verdicts) {
    if (v->trust != trust || !seen.emplace(v->note, v->tap).second) continue;
    const auto [it, added] = at.try_emplace(v->note, notes.size());
    if (added) notes.push_back({v->note, {}});
    notes[it->second].taps.push_back(v->tap);
  }
  return notes;
}

std::string note_text(const NoteGroup& notes) {
  constexpr size_t kNames = 4;
  std::string names;
  for (size_t i = 0; i < std::min(notes.taps.size(), kNames); ++i) {
    names += (i == 0 ? "" : ", ") + printable(notes.taps[i], 80);
  }
  if (notes.taps.size() > kNames) names += ", ...";
  const std::string note = notes.note.empty() ? "no reason given" : printable(notes.note, 200);
  return std::to_string(notes.taps.size()) + ": " + note + " (" + names + ")";
}

}  // namespace dsv32::harness
