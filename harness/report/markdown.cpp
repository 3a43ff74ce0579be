#include <algorithm>

#include "harness/report/groups.h"
#include "harness/report/report.h"
#include "harness/report/text.h"

/// report.md: the comment under a pull request. Fixed order of sections, each with its own share of
/// kMaxBytes.
namespace dsv32::harness {
namespace {

constexpr size_t kMaxBytes = 65536;  // what the hosts of pull requests accept for one comment

constexpr size_t kHeadBytes = 4096;
constexpr size_t kFailureBytes = 20480;
constexpr size_t kTableBytes = 16384;
constexpr size_t kNoteBytes = 4096;  // each of: figures, not green, not tested, warnings
constexpr size_t kFooterBytes = 4096;
static_assert(kHeadBytes + kFailureBytes + kTableBytes + 4 * kNoteBytes + kFooterBytes < kMaxBytes);

constexpr size_t kFurther = 5;  // more failing taps of one subject
constexpr size_t kCauses = 10;

/// Whole lines up to a number of bytes; tells at the end how many blocks did not fit.
class Section {
 public:
  explicit Section(size_t bytes) : bytes_(bytes) {}

  void add(const std::string& block) {
    constexpr size_t kReserve = 100;  // for the line that tells what was left out
    if (left_out_ > 0 || text_.size() + block.size() + kReserve > bytes_) {
      ++left_out_;
    } else {
      text_ += block;
    }
  }

  std::string text() const {
    if (left_out_ == 0) return text_;
    return text_ + "\n_" + std::to_string(left_out_) + " more: see report.json._\n";
  }

 private:
  size_t bytes_, left_out_ = 0;
  std::string text_;
};

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

std::string head(const Report& report, const std::vector<Group>& groups) {
  Section section(kHeadBytes);
  std::string title = "## dsv32-verify: " + verdict_word(report);
  const auto failed =
      std::find_if(groups.begin(), groups.end(), [](const Group& g) { return g.failed(); });
  if (failed != groups.end()) title += ", " + place(*failed);
  if (failed != groups.end() && failed->first_failure != nullptr) {
    title += ", first divergence " + markdown_code(failed->first_failure->tap);
  }
  section.add(title + "\n\n" + counts_text(count(report.verdicts)) + ", " +
              counted(groups.size(), "subject") + ".\n\n");
  if (!report.command.empty()) section.add("Run: " + markdown_code(report.command, 800) + "\n\n");
  return section.text();
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
  section.add("dsv32-verify " + markdown_text(report.tool_version) + ", report schema " +
              std::to_string(kReportSchemaVersion) + ", exit " +
              std::to_string(static_cast<int>(report.exit_code())) + "\n");
  for (const auto& [name, value] : report.environment) {
    section.add("- " + markdown_text(name) + ": " + markdown_text(value) + "\n");
  }
  return section.text();
}

}  // namespace

std::string to_markdown(const Report& report) {
  const std::vector<Group> groups = group_verdicts(report);
  return head(report, groups) + failure_section(report, groups) + table_section(groups) +
         figure_section(report, groups) + not_green_section(groups) +
         not_tested_section(report, groups) + warning_section(report) + footer(report);
}

}  // namespace dsv32::harness
