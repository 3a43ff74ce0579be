#include <algorithm>
#include <optional>

#include "harness/report/diff.h"
#include "harness/report/engines.h"
#include "harness/report/problems.h"
#include "harness/report/report.h"
#include "harness/report/section.h"
#include "harness/report/text.h"

/// report.md: the comment under a pull request. Fixed order of sections, each with its own share of
/// kMaxBytes.
namespace dsv32::harness {
namespace {

// What the hosts of pull requests accept for one comment is 65536; ci/action/comment cuts here.
constexpr size_t kMaxBytes = 60000;

constexpr size_t kHeadBytes = 4096;
constexpr size_t kChangeBytes = 8192;
constexpr size_t kFailureBytes = 12288;
constexpr size_t kEngineBytes = 2048;
constexpr size_t kTableBytes = 10240;
// Each of: judged, figures, answers, not green, not tested, warnings.
constexpr size_t kNoteBytes = 2816;
constexpr size_t kFooterBytes = 4096;
constexpr size_t kFoldBytes = 1024;  // around the folded parts
static_assert(kHeadBytes + kChangeBytes + kFailureBytes + kEngineBytes + kTableBytes +
                  6 * kNoteBytes + kFooterBytes + kFoldBytes <
              kMaxBytes);

constexpr size_t kFurther = 5;  // more failing taps of one subject
constexpr size_t kCauses = 10;

std::string row(const std::string& label, const std::string& value) {
  return "| " + label + " | " + value + " |\n";
}

std::string place(const Group& g) {
  const std::string suite = g.suite.empty() ? "" : markdown_code(g.suite) + " / ";
  return markdown_code(g.case_name) + " / " + suite + markdown_code(g.subject.label);
}

std::vector<const Group*> failing_first(const std::vector<Group>& groups) {
  std::vector<const Group*> order;
  for (const Group& g : groups) order.push_back(&g);
  std::stable_sort(order.begin(), order.end(),
                   [](const Group* a, const Group* b) { return a->failed() > b->failed(); });
  return order;
}

/// `since`: whether it is new against a base; "" without one.
std::string problem_line(const Problem& problem, size_t number, const std::string& since) {
  std::string text = std::to_string(number) + ". " + since;
  text += "**" + markdown_text(problem.words, 300) + "**";
  if (!problem.severity.empty()) text += ": " + markdown_text(problem.severity, 200);
  std::string where = places_text(problem.groups, 5);
  if (problem.defect != nullptr && !problem.defect->layers.empty())
    where += ", " + layers_text(*problem.defect);
  return text + " (" + markdown_text(where, 200) + ")\n";
}

/// Twelve lines: marker, verdict, what the change did, what is wrong, where to read on.
std::string head(const Report& report, const std::vector<Group>& groups,
                 const std::vector<Problem>& problems, const ReportDiff* diff,
                 const std::string& link) {
  constexpr size_t kShown = 4;
  Section section(kHeadBytes);
  section.add(std::string(kCommentMarker) + "\n## dsv32-verify: " + verdict_word(report) + "\n\n");
  const std::string change =
      diff == nullptr ? "" : "  \n" + markdown_text(diff_sentence(*diff), 400);
  section.add(markdown_text(verdict_sentence(report, groups, problems), 600) + change + "\n\n");
  for (size_t i = 0; i < std::min(problems.size(), kShown); ++i) {
    const char* since = diff == nullptr ? "" : diff->is_new[i] ? "new: " : "in the base too: ";
    section.add(problem_line(problems[i], i + 1, since));
  }
  std::string last = problems.empty() ? "" : "\n";
  last += counts_text(count(report.verdicts)) + ", " + counted(groups.size(), "subject") + ".";
  if (problems.size() > kShown)
    last += " " + std::to_string(problems.size() - kShown) + " more problems below.";
  if (link.empty()) {
    last += " Pictures and all numbers: `report.html`.";
  } else {
    last += " [Pictures and all numbers](<" + link + ">)";
  }
  section.add(last + "\n");
  return section.text() + "\n";
}

/// What was judged, in one line for each candidate.
std::string judged_section(const Report& report) {
  constexpr size_t kFacts = 14;
  Section section(kNoteBytes - 64);
  for (const Provenance& p : report.judged) {
    std::string line = "- " + markdown_code(p.subject.label) + " in " + markdown_code(p.case_name);
    for (size_t i = 0; i < std::min(p.facts.size(), kFacts); ++i)
      line += std::string(i == 0 ? ": " : ", ") + markdown_text(p.facts[i].first, 60) + " " +
              markdown_code(p.facts[i].second, 120);
    section.add(line + "\n");
  }
  return section.text();
}

/// A folded part; "" for nothing.
std::string folded(const std::string& title, const std::string& content) {
  if (content.empty()) return "";
  return "<details><summary>" + title + "</summary>\n\n" + content + "\n</details>\n\n";
}

std::string size_of(const Verdict& v) {
  std::string text;
  for (const Measure& m : v.measures) {
    if (!m.within()) text += (text.empty() ? "" : ", ") + measure_text(m);
  }
  return markdown_text(text.empty() ? "failed" : text, 400);
}

std::string first_divergence(const Report& report, const Group& g) {
  const Verdict* v = g.first_failure;
  if (v == nullptr) return "";
  std::string text =
      row("First divergence", markdown_code(v->tap) + " (" + std::string(to_string(v->mode)) + ")");
  text += row("Size", size_of(*v));
  if (v->plain) text += row("Error", markdown_text(plain_text(*v)));
  if (v->worst) text += row("Worst element", markdown_text(worst_text(*v)));
  const std::string inputs = inputs_text(*v);
  if (!inputs.empty()) text += row("Op", markdown_text(inputs));
  if (!v->structure.empty()) text += row("Structure", markdown_text(v->structure, 300));
  if (!v->note.empty()) text += row("Note", markdown_text(v->note, 300));
  return text + row("Reproduce", markdown_code(repro_command(report, *v), 600));
}

std::string failure_block(const Report& report, const Group& g) {
  std::string text = "### " + place(g) + "\n\n| | |\n|--|--|\n";
  for (const Finding* f : g.findings) {
    if (!f->headline.empty()) text += row("Finding", markdown_text(f->headline, 300));
    if (f->fault != Fault::none) text += row("At fault", std::string(to_string(f->fault)));
    for (size_t i = 0; i < std::min(f->causes.size(), kCauses); ++i) {
      text += row("Likely cause", markdown_text(f->causes[i], 400));
    }
    if (!f->profile.empty()) text += row("Profile", markdown_text(f->profile, 400));
  }
  text += first_divergence(report, g) + "\n";
  const std::vector<const Verdict*> all = failures(g);
  if (all.size() < 2) return text;
  text += "Also failing (" + std::to_string(all.size() - 1) + "), worst first:\n\n";
  text += "| Tap | Mode | Measured (limit) |\n|--|--|--|\n";
  for (size_t i = 1; i < std::min(all.size(), kFurther + 1); ++i) {
    text += "| " + markdown_code(all[i]->tap) + " | " + std::string(to_string(all[i]->mode)) +
            " | " + size_of(*all[i]) + " |\n";
  }
  return text + "\n";
}

std::string failure_section(const Report& report, const std::vector<Group>& groups) {
  Section section(kFailureBytes);
  for (const Group& g : groups) {
    if (g.failed()) section.add(failure_block(report, g));
  }
  return section.text();
}

std::string table_row(const Group& g) {
  std::string worst = "| | |";
  if (g.worst != nullptr) {
    worst = "| " + markdown_code(g.worst->tap) + " (" + std::string(to_string(g.worst->mode)) +
            ") | " + severity_text(*g.worst) + " |";
  }
  const std::string suite = g.suite.empty() ? "" : markdown_code(g.suite) + " ";
  return "| " + markdown_code(g.case_name) + " | " + suite + markdown_code(g.subject.label) +
         " | " + g.state() + " | " + coverage_text(g) + " " + worst + "\n";
}

std::string table_section(const std::vector<Group>& groups) {
  if (groups.empty()) return "";
  Section section(kTableBytes);
  section.add("| Case | Subject | Verdict | Checked | Worst check | Size |\n|--|--|--|--|--|--|\n");
  for (const Group* g : failing_first(groups)) section.add(table_row(*g));
  return section.text() + "\n";
}

void add_notes(Section& section, const std::vector<Group>& groups, Trust trust) {
  for (const Group& g : groups) {
    for (const NoteGroup& notes : notes_of(g, trust)) {
      section.add("- " + place(g) + " " + std::string(to_string(trust)) + " " +
                  markdown_text(note_text(notes), 400) + "\n");
    }
  }
}

std::string titled(const std::string& title, const Section& section) {
  const std::string text = section.text();
  return text.empty() ? "" : title + "\n\n" + text + "\n";
}

std::string figure_section(const Report& report, const std::vector<Group>& groups) {
  Section section(kNoteBytes - 64);
  for (size_t i = 0; i < groups.size(); ++i) {
    const std::string text = ends_suite(groups, i) ? figures_text(report, groups[i]) : "";
    if (text.empty()) continue;
    section.add("- " + markdown_code(groups[i].case_name) + " / " + markdown_code(groups[i].suite) +
                ": " + markdown_text(text, 400) + "\n");
  }
  return titled("**Figures**", section);
}

std::string answer_section(const Report& report) {
  Section section(kNoteBytes - 64);
  for (const Answers& answers : report.answers) {
    section.add("- " + markdown_code(answers.subject.label) + ": " + score_text(answers.all()) +
                "\n");
    for (size_t i = 0; i < answers.examples.size(); ++i)
      section.add("  - row " + std::to_string(i) + ": " + score_text(answers.examples[i]) + "\n");
  }
  return section.text();
}

std::string not_green_section(const std::vector<Group>& groups) {
  Section section(kNoteBytes - 64);
  add_notes(section, groups, Trust::missing);
  add_notes(section, groups, Trust::vacuous);
  add_notes(section, groups, Trust::undecided);
  return titled("**Not green**", section);
}

std::string not_tested_section(const Report& report, const std::vector<Group>& groups) {
  Section section(kNoteBytes - 64);
  for (const std::string& reason : report.not_tested)
    section.add("- " + markdown_text(reason, 400) + "\n");
  add_notes(section, groups, Trust::skipped);
  return titled("**Not tested**", section);
}

std::string warning_section(const Report& report) {
  Section section(kNoteBytes - 64);
  for (const std::string& warning : report.warnings)
    section.add("- " + markdown_text(warning, 400) + "\n");
  return titled("**Warnings**", section);
}

std::string footer(const Report& report) {
  Section section(kFooterBytes);
  if (!report.command.empty()) section.add("Run: " + markdown_code(report.command, 800) + "\n\n");
  section.add("dsv32-verify " + markdown_text(report.tool_version) + ", report schema " +
              std::to_string(kReportSchemaVersion) + ", exit " +
              std::to_string(static_cast<int>(report.exit_code())) + "\n");
  for (const auto& [name, value] : report.environment) {
    section.add("- " + markdown_text(name) + ": " + markdown_text(value) + "\n");
  }
  return section.text();
}

std::string engine_section(const Report& report, const std::vector<Group>& groups) {
  Section section(kEngineBytes);
  for (const Engine& engine : engines_of(report, groups)) {
    std::string block =
        "### " + markdown_text(engine.name) + ", " + std::to_string(engine.files) + " files\n\n";
    if (!engine.profile.empty()) block += markdown_text(engine.profile, 400) + "\n\n";
    block += "| Part | Verdict | Evidence |\n|--|--|--|\n";
    for (const ComponentRow& row : engine.rows)
      block += "| " + row.component + " | " + row.state + " | " + markdown_text(row.evidence, 300) +
               " |\n";
    section.add(block + "\n");
  }
  return section.text();
}

}  // namespace

std::string to_markdown(const Report& report, const Beside& beside) {
  const std::vector<Group> groups = group_verdicts(report);
  const std::vector<Problem> problems = problems_of(groups);
  std::optional<ReportDiff> diff;
  if (beside.base != nullptr) diff = compare_reports(*beside.base, report);
  const std::string open =
      not_green_section(groups) + not_tested_section(report, groups) + warning_section(report);
  return head(report, groups, problems, diff ? &*diff : nullptr, beside.link) +
         folded("What changed against the base",
                diff ? diff_details(*diff, kChangeBytes) : std::string()) +
         folded("Each engine, all its files together", engine_section(report, groups)) +
         folded("Failures in detail", failure_section(report, groups)) +
         folded("All subjects", table_section(groups) + figure_section(report, groups)) +
         folded("How well the labels of the batch are predicted", answer_section(report)) +
         folded("What was not tested, and why", open) +
         folded("What was judged, and by what", judged_section(report) + "\n" + footer(report));
}

}  // namespace dsv32::harness
