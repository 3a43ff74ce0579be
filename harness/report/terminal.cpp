#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <sstream>

#include "harness/report/engines.h"
#include "harness/report/fit.h"
#include "harness/report/problems.h"
#include "harness/report/report.h"
#include "harness/report/text.h"

/// The table that people read: one line per case and subject, details only where something is
/// wrong.
namespace dsv32::harness {
namespace {

constexpr size_t kMaxLines = 20;  // more groups than that: passing cases shrink to one line each
constexpr size_t kProblems = 8, kPlaces = 5;  // of the summary, and cases of each
constexpr size_t kAlso = 4;                   // further failing taps of a group
constexpr size_t kNotes = 5;     // lines of warnings, of untested things, of notes per state
constexpr size_t kCauses = 10;   // of one subject
constexpr size_t kExamples = 8;  // rows of a batch whose loss is shown
constexpr size_t kSubjectWidth = 48;
constexpr size_t kStateColumns = 9;  // of a verdict and the gap after it
/// What a line about a candidate tells of it.
constexpr std::string_view kTold[] = {
    "sha256",         "dtype",           "attn_implementation", "transformers",           "engine",
    "implementation", "modeling_sha256", "transformers_commit", "experts_implementation", "device"};

class Screen {
 public:
  Screen(const Report& report, bool color, bool verbose, size_t width)
      : report_(report),
        color_(color),
        verbose_(verbose),
        width_(width == 0 ? 0 : std::max(width, kNarrowest)),
        groups_(group_verdicts(report)) {}

  std::string render() {
    measure_columns();
    add_summary();
    for (size_t i = 0; i < groups_.size();) i = add_case(i);
    for (const Engine& engine : engines_of(report_, groups_)) add_engine(engine);
    for (const Answers& answers : report_.answers) add_answers(answers);
    add_skipped();
    add_list("warning", report_.warnings);
    add_list("not tested", report_.not_tested);
    if (verbose_) add_environment();
    add_judge();
    add_last_line();
    return width_ == 0 ? out_.str() : fitted(out_.str(), width_);
  }

 private:
  static constexpr size_t kNarrowest = 20;
  void measure_columns() {
    for (const Group& g : groups_) {
      case_width_ = std::max(case_width_, columns(printable(g.case_name, 40)));
      subject_width_ = std::max(subject_width_, columns(subject_text(g)));
    }
    subject_width_ = std::min(subject_width_, kSubjectWidth);
  }

  /// What is wrong in all where several subjects fail, the gravest first: details are long.
  void add_summary() {
    const auto failing =
        std::count_if(groups_.begin(), groups_.end(), [](const Group& g) { return g.failed(); });
    if (failing < 2) return;
    const std::vector<Problem> problems = problems_of(groups_);
    out_ << padded_state("FAIL") << verdict_sentence(report_, groups_, problems) << "\n";
    for (size_t i = 0; i < std::min(problems.size(), kProblems); ++i) {
      const Problem& problem = problems[i];
      out_ << "  " << i + 1 << ". " << printable(problem.words, 300);
      if (!problem.severity.empty()) out_ << ": " << printable(problem.severity, 300);
      out_ << " (" << places_text(problem.groups, kPlaces) << ")\n";
    }
    if (problems.size() > kProblems)
      out_ << "  " << problems.size() - kProblems << " more, see report.json\n";
    out_ << "\n";
  }

  /// What the training suite measured, and its cost.
  void add_figures(const Group& g) {
    if (g.suite.empty()) return;
    add_detail("figures", figures_text(report_, g));
    add_detail("cost", cost_text(report_, g));
  }

  size_t add_case(size_t begin) {
    size_t end = begin;
    bool quiet = true;  // nothing to tell but that it passed
    for (; end < groups_.size() && groups_[end].case_name == groups_[begin].case_name; ++end) {
      quiet = quiet && groups_[end].green() &&
              groups_[end].suite.empty();  // their figures are worth reading
    }
    if (quiet && !verbose_ && groups_.size() > kMaxLines) {
      add_short_case(begin, end);
    } else {
      for (size_t i = begin; i < end; ++i) {
        add_group(groups_[i]);
        if (ends_suite(groups_, i)) add_figures(groups_[i]);
      }
    }
    return end;
  }

  /// All subjects of a passing case on one line; why some checks were skipped stands below.
  void add_short_case(size_t begin, size_t end) {
    const Verdict* worst = nullptr;
    size_t checks = 0, skipped = 0;
    for (size_t i = begin; i < end; ++i) {
      checks += groups_[i].counts.executed();
      skipped += groups_[i].counts.skipped;
      for (const Verdict* v : groups_[i].verdicts)
        if (v->trust == Trust::skipped) ++skipped_[v->note];
      const Verdict* v = groups_[i].worst;
      if (v != nullptr && (worst == nullptr || v->margin() > worst->margin())) worst = v;
    }
    std::string what = counted(end - begin, "subject") + ", " + counted(checks, "check");
    if (skipped > 0) what += ", " + std::to_string(skipped) + " skipped";
    add_line(groups_[begin].case_name, what, "PASS", worst_part(worst, true));
  }

  void add_group(const Group& g) {
    add_line(g.case_name, subject_text(g), g.state(),
             coverage_text(g) + worst_part(g.worst, false));
    if (g.failed()) add_failure(g);
    add_judged(g);
    add_notes(g, Trust::missing);
    add_notes(g, Trust::vacuous);
    add_notes(g, Trust::undecided);
    add_notes(g, Trust::skipped);
    if (verbose_) add_taps(g);
  }

  std::string worst_part(const Verdict* worst, bool name_subject) const {
    if (worst == nullptr) return "";
    const std::string subject = name_subject ? printable(worst->subject.label, 40) + " " : "";
    return "  worst " + subject + printable(worst->tap, 80) + " " + severity_text(*worst);
  }

  /// In one line, or with the verdict in front and the rest below it.
  void add_line(const std::string& case_name, const std::string& subject, const std::string& state,
                const std::string& rest) {
    const size_t whole = case_width_ + subject_width_ + kStateColumns + columns(rest);
    if (width_ > 0 && whole > width_) {
      out_ << padded_state(state) << printable(case_name, 40) << "  " << subject << "\n"
           << std::string(kStateColumns, ' ') << rest << "\n";
      return;
    }
    out_ << padded(printable(case_name, 40), case_width_) << "  " << padded(subject, subject_width_)
         << "  " << padded_state(state) << rest << "\n";
  }

  std::string padded_state(const std::string& state) const {
    const size_t n = std::max(state.size() + 1, kStateColumns);
    return painted(state) + std::string(n - state.size(), ' ');
  }

  /// What was judged, in a line.
  void add_judged(const Group& g) {
    if (g.subject.party != Party::candidate) return;
    constexpr size_t kShort = 12;
    for (const Provenance& p : report_.judged) {
      if (p.case_name != g.case_name || p.subject != g.subject) continue;
      std::string text;
      for (const auto& [name, value] : p.facts) {
        if (std::find(std::begin(kTold), std::end(kTold), name) == std::end(kTold)) continue;
        const bool digest = name.ends_with("sha256") || name.ends_with("commit");
        text += (text.empty() ? "" : ", ") + printable(name, 40) + " " +
                printable(digest ? value.substr(0, kShort) : value, 60);
      }
      add_detail("judged", text);
    }
  }

  /// What all files of an engine say together.
  void add_engine(const Engine& engine) {
    out_ << printable(engine.name, 80) << ", " << engine.files << " files together"
         << (engine.profile.empty() ? "" : ": " + printable(engine.profile, 400)) << "\n";
    size_t width = 0;
    for (const ComponentRow& row : engine.rows) width = std::max(width, row.component.size());
    std::string untested;
    for (const ComponentRow& row : engine.rows) {
      if (row.evidence.empty())
        untested += (untested.empty() ? "" : ", ") + row.component;
      else
        out_ << "    " << padded(row.component, width) << "  " << padded_state(row.state)
             << printable(row.evidence, 300) << "\n";
    }
    if (!untested.empty()) add_detail("not tested", untested);
  }

  /// How well one subject predicts the labels: in all, then example by example.
  void add_answers(const Answers& answers) {
    out_ << "answers  " << printable(answers.subject.label, 80) << ": " << score_text(answers.all())
         << "\n";
    const size_t shown = verbose_ ? answers.examples.size() : kExamples;
    for (size_t i = 0; i < std::min(answers.examples.size(), shown); ++i)
      add_detail(("row " + std::to_string(i)).c_str(), score_text(answers.examples[i]));
    if (answers.examples.size() > shown)
      add_detail("",
                 std::to_string(answers.examples.size() - shown) + " more, see report.json or -v");
  }

  void add_judge() {
    if (!report_.environment.contains("commit")) return;
    constexpr size_t kShort = 12;
    std::string text = "judged by dsv32-verify " + printable(report_.tool_version, 40);
    text += " " + printable(report_.environment.at("commit").substr(0, 2 * kShort), 40);
    for (const char* name : {"torch", "device"}) {
      const auto found = report_.environment.find(name);
      if (found != report_.environment.end())
        text += std::string(", ") + name + " " + printable(found->second, 40);
    }
    size_t goldens = 0;
    for (const Provenance& p : report_.judged) {
      if (p.subject.party != Party::golden || goldens++ > 0) continue;
      for (const auto& [name, value] : p.facts)
        if (name == "transformers") text += ", goldens of transformers " + printable(value, 40);
    }
    out_ << text << "\n";
  }

  void add_detail(const char* label, const std::string& text) {
    if (!text.empty()) out_ << "    " << padded(label, 9) << " " << text << "\n";
  }

  /// Whether every defect of this group stands in full above.
  bool is_told(const Group& g) {
    bool told = true, any = false;
    for (const Finding* f : g.findings)
      for (const Defect& defect : f->defects) {
        any = true;
        const std::string key = defect.name.empty() ? defect.words : defect.name;
        if (told_.insert(key).second) told = false;
      }
    return any && told && !verbose_;
  }

  void add_failure(const Group& g) {
    for (const Finding* f : g.findings) add_detail("finding", printable(f->headline));
    const Verdict* v = g.first_failure;
    if (is_told(g)) {
      for (const Finding* f : g.findings) add_detail("profile", printable(f->profile));
      add_detail("", "explained above; all of it by -v");
      if (v != nullptr) add_detail("repro", repro_command(report_, *v));
      return;
    }
    if (v != nullptr) {
      add_detail("first", printable(v->tap, 100) + " (" + std::string(to_string(v->mode)) +
                              "): " + measures_text(*v));
      add_detail("error", plain_text(*v));
      add_detail("op", inputs_text(*v));
      add_detail("worst", worst_text(*v));
      add_detail("structure", printable(v->structure));
      add_detail("note", printable(v->note));
    }
    for (const Finding* f : g.findings) add_causes(*f);
    add_further(g);
    if (v != nullptr) add_detail("repro", repro_command(report_, *v));
  }

  void add_causes(const Finding& f) {
    for (size_t i = 0; i < std::min(f.causes.size(), kCauses); ++i) {
      add_detail("cause", printable(f.causes[i]));
    }
    add_detail("profile", printable(f.profile));
    if (f.fault != Fault::none) add_detail("at fault", std::string(to_string(f.fault)));
  }

  void add_further(const Group& g) {
    const std::vector<const Verdict*> all = failures(g);
    for (size_t i = 1; i < std::min(all.size(), kAlso + 1); ++i) {
      const Measure* m = worst_measure(*all[i]);
      add_detail("also", printable(all[i]->tap, 100) + " (" + std::string(to_string(all[i]->mode)) +
                             ")" + (m ? ": " + measure_text(*m) : ": " + printable(all[i]->note)) +
                             (all[i]->plain ? ", " + plain_text(*all[i]) : ""));
    }
    if (all.size() > kAlso + 1) {
      add_detail("also", std::to_string(all.size() - kAlso - 1) + " more, see report.json or -v");
    }
  }

  std::string measures_text(const Verdict& v) const {
    std::string failing;
    for (const Measure& m : v.measures) {
      if (!m.within()) failing += (failing.empty() ? "" : ", ") + measure_text(m);
    }
    return failing.empty() ? "failed" : failing;
  }

  void add_notes(const Group& g, Trust trust) {
    const std::vector<NoteGroup> notes = notes_of(g, trust);
    const std::string label(to_string(trust));
    for (size_t i = 0; i < std::min(notes.size(), kNotes); ++i) {
      add_detail(label.c_str(), note_text(notes[i]));
    }
    if (notes.size() > kNotes) {
      add_detail(label.c_str(), std::to_string(notes.size() - kNotes) + " more reasons");
    }
  }

  void add_taps(const Group& g) {
    for (const Verdict* v : g.verdicts) {  // in execution order
      std::string text;
      for (const Measure& m : v->measures) text += "  " + measure_text(m);
      if (!v->note.empty()) text += "  " + printable(v->note);
      out_ << "    " << padded(std::string(to_string(v->mode)), 6) << "  "
           << padded(printable(v->tap, 120), 40) << "  "
           << painted(std::string(to_string(v->trust))) << text << "\n";
    }
  }

  void add_list(const char* label, const std::vector<std::string>& lines) {
    const size_t shown = verbose_ ? lines.size() : std::min(lines.size(), kNotes);
    for (size_t i = 0; i < shown; ++i) out_ << label << ": " << printable(lines[i]) << "\n";
    if (shown < lines.size())
      out_ << label << ": " << lines.size() - shown << " more, see report.json\n";
  }

  void add_skipped() {
    for (const auto& [reason, checks] : skipped_)
      out_ << "skipped: " << counted(checks, "check") << ": " << printable(reason) << "\n";
  }

  void add_environment() {
    for (const auto& [name, value] : report_.environment)
      out_ << printable(name) << ": " << printable(value) << "\n";
  }

  /// The command stands above it where it would have to be broken.
  void add_last_line() {
    const std::string counts = counts_text(count(report_.verdicts));
    constexpr size_t kRest = 30;  // verdict, seconds, bars
    const bool own_line =
        width_ > 0 && columns(counts) + columns(printable(report_.command)) + kRest > width_;
    if (own_line) out_ << "run " << printable(report_.command) << "\n";
    out_ << painted(verdict_word(report_)) << " | " << counts;
    constexpr double kLong = 999;  // 2170 s, not 2.17e+03 s
    if (report_.seconds > kLong)
      out_ << " | " << std::llround(report_.seconds) << " s";
    else if (report_.seconds > 0)
      out_ << " | " << number(report_.seconds) << " s";
    if (!report_.command.empty() && !own_line) out_ << " | " << printable(report_.command);
    out_ << "\n";
  }

  std::string painted(const std::string& word) const {
    if (!color_) return word;
    const bool good = word == "PASS" || word == "pass";
    const bool bad = word == "FAIL" || word == "fail";
    return std::string(good ? "\x1b[32m" : bad ? "\x1b[1;31m" : "\x1b[33m") + word + "\x1b[0m";
  }

  const Report& report_;
  const bool color_, verbose_;
  const size_t width_;  // 0: lines are not broken
  const std::vector<Group> groups_;
  size_t case_width_ = 0, subject_width_ = 0;
  std::set<std::string> told_;             // defects that were explained
  std::map<std::string, size_t> skipped_;  // checks of the cases on one line, by reason
  std::ostringstream out_;
};

}  // namespace

std::string to_terminal(const Report& report, bool color, bool verbose, size_t width) {
  return Screen(report, color, verbose, width).render();
}

}  // namespace dsv32::harness
