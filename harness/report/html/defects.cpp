#include <algorithm>

#include "harness/report/engines.h"
#include "harness/report/html/html.h"
#include "harness/report/text.h"

/// The defects in words: what, how grave, on what evidence, how to see it again.
namespace dsv32::harness::html {
namespace {

constexpr size_t kBytes = 60000, kProfileBytes = 10000, kChangeBytes = 80000;
constexpr size_t kTaps = 6;

std::string line(const std::string& label, const std::string& value) {
  if (value.empty()) return "";
  return element("p", "", "<span class=\"soft\">" + label + "</span> " + value) + "\n";
}

/// "explains 4 failing taps: layers.0.ix.k, ..."
std::string taps_of(const Problem& problem) {
  if (problem.defect == nullptr) return "";
  const auto& taps = problem.defect->taps;
  std::string names;
  for (size_t i = 0; i < std::min(taps.size(), kTaps); ++i)
    names += (i == 0 ? "" : ", ") + element("code", "", text(taps[i], 120));
  if (taps.size() > kTaps) names += " and " + std::to_string(taps.size() - kTaps) + " more";
  return names;
}

std::string measures_of(const Verdict& verdict) {
  std::string words;
  for (const Measure& m : verdict.measures)
    if (!m.within()) words += (words.empty() ? "" : ", ") + measure_text(m);
  return words;
}

/// The check in which it shows first: how far off, and the worst element.
std::string check_of(const Problem& problem) {
  const Verdict* v = problem.verdict;
  if (v == nullptr) return "";
  std::string words =
      element("code", "", text(v->tap, 160)) + " (" + std::string(to_string(v->mode)) + ")";
  const std::string plain = plain_text(*v);
  if (!plain.empty()) words += ": " + text(plain);
  std::string more;
  const std::string measures = measures_of(*v);
  if (!measures.empty()) more += line("measured", text(measures, 600));
  const std::string inputs = inputs_text(*v);
  if (!inputs.empty()) more += line("op", text(inputs));
  if (v->worst) more += line("worst element", text(worst_text(*v)));
  if (!v->structure.empty()) more += line("structure", text(v->structure, 600));
  if (!v->note.empty()) more += line("note", text(v->note, 1000));
  return line("first check", words) + folded("Its numbers", more);
}

std::string article(const Page& page, const Problem& problem, size_t number) {
  const char* since = page.diff == nullptr            ? ""
                      : page.diff->is_new[number - 1] ? "new: "
                                                      : "in the base too: ";
  std::string inside =
      element("h3", "", std::to_string(number) + ". " + since + text(problem.words, 600));
  if (!problem.severity.empty())
    inside += element("p", " class=\"grave\"", text(problem.severity, 400)) + "\n";
  std::string where = name_of(*problem.groups.front());
  if (problem.groups.size() > 1) where = text(places_text(problem.groups, 8), 600);
  if (problem.defect != nullptr && !problem.defect->layers.empty())
    where += ", " + text(layers_text(*problem.defect), 200);
  inside += line("where", where);
  if (!problem.name.empty()) inside += line("known bug", element("code", "", text(problem.name)));
  if (problem.defect != nullptr && !problem.defect->evidence.empty())
    inside += line("evidence", text(problem.defect->evidence, 600));
  inside += line("explains", taps_of(problem)) + check_of(problem);
  if (problem.verdict != nullptr && !page.report.command.empty())
    inside += element("pre", "", text(repro_command(page.report, *problem.verdict), 1200));
  return "<article class=\"defect\">" + inside + "</article>\n";
}

}  // namespace

std::string changes_part(const Page& page) {
  if (page.diff == nullptr) return "";
  Bounded defects(kChangeBytes / 2);
  for (const DefectChapter& chapter : chapters_of_defects(*page.diff))
    for (const ChangedDefect& defect : *chapter.defects)
      defects.add(
          element("li", "",
                  "<b>" + std::string(chapter.title) + "</b> " + text(change_text(defect), 700)) +
          "\n");
  std::string checks;
  for (const Chapter& chapter : chapters_of(*page.diff)) {
    Bounded rows(kChangeBytes / 4);
    for (const ChangedCheck& check : *chapter.checks)
      rows.add(table_row({text(check.group), element("code", "", text(check.check)),
                          text(check.before), text(check.after)}));
    checks +=
        rows.empty()
            ? ""
            : folded("Checks " + std::string(chapter.title) + ": " +
                         std::to_string(chapter.checks->size()),
                     table({"Subject", "Check", "Base", "Head"}, rows.blocks()) + rows.rest());
  }
  const std::string about = remark(
      "The <b>base</b> is the source tree before the change, the <b>head</b> the one after it; "
      "both "
      "were judged alike. A check is <b>newly untested</b> when it told something of the base and "
      "tells nothing of the head.");
  const std::string list = defects.empty() ? "" : "<ul>" + defects.blocks() + "</ul>\n";
  return section("changes", "What changed against the base",
                 about + list + defects.rest() + checks);
}

std::string engines_part(const Page& page) {
  std::string tables;
  for (const Engine& engine : engines_of(page.report, page.groups)) {
    std::string rows;
    for (const ComponentRow& row : engine.rows)
      rows += table_row({text(row.component), text(row.state), text(row.evidence, 400)});
    std::string name = text(engine.name) + ", " + std::to_string(engine.files) + " files";
    if (!engine.profile.empty()) name += ": " + element("code", "", text(engine.profile, 500));
    tables += element("p", "", name) + table({"part", "verdict", "evidence"}, rows);
  }
  if (tables.empty()) return "";
  const std::string about = remark(
      "Each part of the model over all files of one implementation. <b>by what begins "
      "elsewhere</b>: its own operations are right on the inputs that they were given, and those "
      "inputs were wrong.");
  return section("engines", "Each engine, all its files together", about + tables);
}

std::string defects_part(const Page& page) {
  if (page.problems.empty()) return "";
  Bounded list(kBytes);
  for (size_t i = 0; i < page.problems.size(); ++i)
    list.add(article(page, page.problems[i], i + 1));
  Bounded profiles(kProfileBytes);
  for (const Group& g : page.groups)
    for (const Finding* f : g.findings)
      if (!f->profile.empty())
        profiles.add(
            element("li", "", name_of(g) + ": " + element("code", "", text(f->profile, 500))));
  const std::string about = remark(
      "The gravest first. How grave: the float64 model with this defect alone against the one "
      "without. <b>off</b>: relative L2 error of the whole tensor. <b>where</b>: the cases that "
      "show it. <b>explains</b>: the taps (named intermediate values) whose errors are its own. "
      "<b>first check</b>: the first of them, <b>staged</b>: on the implementation's own inputs, "
      "or <b>forced</b>: end to end. In the box: the command that judges this check alone.");
  const std::string profile = profiles.empty()
                                  ? ""
                                  : folded("What each implementation is",
                                           "<ul>" + profiles.blocks() + "</ul>" + profiles.rest());
  return section("defects", "What is wrong", about + list.blocks() + list.rest() + profile);
}

}  // namespace dsv32::harness::html
