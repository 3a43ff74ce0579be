#include "harness/report/diff.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "harness/report/problems.h"
#include "harness/report/section.h"
#include "harness/report/text.h"

namespace dsv32::harness {
namespace {

enum class State { good, bad, open };

State state_of(const Verdict* v) {
  if (v == nullptr) return State::open;
  return v->trust == Trust::pass ? State::good : v->trust == Trust::fail ? State::bad : State::open;
}

std::string words_of(const Verdict* v) {
  if (v == nullptr) return "not there";
  std::string words(to_string(v->trust));
  if (v->trust == Trust::fail) words += ", " + severity_text(*v);
  return words;
}

/// A check by what it is, whatever the file is called.
using Key = std::tuple<std::string, std::string, std::string, std::string, Mode, size_t>;

class Index {
 public:
  explicit Index(const Report& report) {
    std::map<std::tuple<std::string, std::string, Party>, std::set<std::string>> labels;
    for (const Verdict& v : report.verdicts)
      labels[{v.case_name, v.suite, v.subject.party}].insert(v.subject.label);
    for (const Verdict& v : report.verdicts) {
      const bool alone = labels.at({v.case_name, v.suite, v.subject.party}).size() == 1;
      std::string who(to_string(v.subject.party));
      if (!alone) who = v.subject.label;
      Key key{v.case_name, v.suite, who, v.tap, v.mode, 0};
      while (!at_.try_emplace(key, &v).second) ++std::get<5>(key);
      order_.push_back(key);
    }
  }
  const std::vector<Key>& keys() const { return order_; }
  const Verdict* find(const Key& key) const {
    const auto found = at_.find(key);
    return found == at_.end() ? nullptr : found->second;
  }

 private:
  std::map<Key, const Verdict*> at_;
  std::vector<Key> order_;
};

ChangedCheck entry(const Key& key, const Verdict* before, const Verdict* after) {
  const auto& [case_name, suite, who, tap, mode, repeat] = key;
  std::string group = printable(case_name, 60);
  if (!suite.empty()) group += " " + printable(suite, 60);
  return {.group = group + ", " + printable(who, 80),
          .check = printable(tap, 160) + " (" + std::string(to_string(mode)) + ")",
          .before = words_of(before),
          .after = words_of(after)};
}

void sort_in(const Key& key, const Verdict* before, const Verdict* after, ReportDiff& diff) {
  const State a = state_of(before), b = state_of(after);
  if (a != State::open && b != State::open) ++diff.common;
  if (a == b && a != State::bad) return;
  const ChangedCheck check = entry(key, before, after);
  if (b == State::open) return diff.untested.push_back(check);
  if (b == State::good) return (a == State::bad ? diff.fixed : diff.tested).push_back(check);
  if (a != State::bad) return diff.broken.push_back(check);
  (check.before == check.after ? diff.still : diff.changed).push_back(check);
}

const Problem* same_problem(const Problem& problem, const std::vector<Problem>& others) {
  const auto same = std::find_if(others.begin(), others.end(), [&](const Problem& other) {
    return is_same_problem(problem, other);
  });
  return same == others.end() ? nullptr : &*same;
}

std::string weight_text(const Problem& problem) {
  return problem.severity.empty() ? "not weighed" : printable(problem.severity, 300);
}

void sort_defects(const std::vector<Problem>& before, const std::vector<Problem>& after,
                  ReportDiff& diff) {
  for (const Problem& problem : after) {
    const Problem* was = same_problem(problem, before);
    const ChangedDefect defect{.words = printable(problem.words, 400),
                               .before = was == nullptr ? "" : weight_text(*was),
                               .after = weight_text(problem)};
    (was == nullptr ? diff.new_defects : diff.left_defects).push_back(defect);
    diff.is_new.push_back(was == nullptr);
  }
  for (const Problem& problem : before)
    if (same_problem(problem, after) == nullptr)
      diff.fixed_defects.push_back(
          {.words = printable(problem.words, 400), .before = weight_text(problem), .after = ""});
}

// --- words
// ----------------------------------------------------------------------------------------

/// "14 broken, 3 fixed"; "" where no check changed.
std::string checks_text(const ReportDiff& diff) {
  std::string text;
  for (const Chapter& chapter : chapters_of(diff)) {
    if (chapter.checks->empty()) continue;
    text += (text.empty() ? "" : ", ") + std::to_string(chapter.checks->size()) + " ";
    text += chapter.title;
  }
  return text;
}

std::string summary(const ReportDiff& diff) {
  const std::string text = checks_text(diff);
  return (text.empty() ? "no check changed" : text) + " (" + counted(diff.common, "check") +
         " in both)";
}

std::string chapter_markdown(const Chapter& chapter, size_t bytes) {
  const std::string head = "<details><summary>" + std::string(chapter.title) + ": " +
                           std::to_string(chapter.checks->size()) +
                           "</summary>\n\n| Subject | Check | Base | Head |\n|--|--|--|--|\n";
  const std::string end = "\n</details>\n";
  Section rows(bytes - std::min(bytes, head.size() + end.size()));
  for (const ChangedCheck& check : *chapter.checks)
    rows.add("| " + markdown_text(check.group) + " | " + markdown_code(check.check) + " | " +
             markdown_text(check.before) + " | " + markdown_text(check.after) + " |\n");
  return head + rows.text() + end;
}

}  // namespace

ReportDiff compare_reports(const Report& before, const Report& after) {
  ReportDiff diff;
  const Index a(before), b(after);
  for (const Key& key : b.keys()) sort_in(key, a.find(key), b.find(key), diff);
  for (const Key& key : a.keys())
    if (b.find(key) == nullptr) sort_in(key, a.find(key), nullptr, diff);
  const std::vector<Group> groups_a = group_verdicts(before), groups_b = group_verdicts(after);
  const std::vector<Problem> was = problems_of(groups_a), is = problems_of(groups_b);
  diff.before = verdict_sentence(before, groups_a, was);
  diff.after = verdict_sentence(after, groups_b, is);
  diff.after_fails = after.exit_code() == ExitCode::parity;
  sort_defects(was, is, diff);
  return diff;
}

std::vector<Chapter> chapters_of(const ReportDiff& diff) {
  return {{"broken", &diff.broken},      {"newly untested", &diff.untested},
          {"fixed", &diff.fixed},        {"changed in size", &diff.changed},
          {"still broken", &diff.still}, {"newly tested", &diff.tested}};
}

std::vector<DefectChapter> chapters_of_defects(const ReportDiff& diff) {
  return {{"new defect", &diff.new_defects},
          {"fixed defect", &diff.fixed_defects},
          {"defect left", &diff.left_defects}};
}

std::string change_text(const ChangedDefect& defect) {
  if (defect.before.empty()) return defect.words + ": " + defect.after;
  if (defect.after.empty() || defect.before == defect.after)
    return defect.words + ": " + defect.before;
  return defect.words + ": " + defect.before + "; now " + defect.after;
}

std::string diff_sentence(const ReportDiff& diff) {
  const size_t fixed = diff.fixed_defects.size(), left = diff.left_defects.size();
  std::string text;
  if (!diff.is_new.empty() || fixed > 0) {
    const size_t added = diff.new_defects.size();
    text = added == 0 ? "no new defect" : counted(added, "new defect");
    if (fixed > 0) text += ", " + std::to_string(fixed) + " fixed";
    if (left > 0) text += ", " + std::to_string(left) + " left";
  }
  const std::string checks = checks_text(diff);
  if (!checks.empty()) text += (text.empty() ? "checks: " : "; checks: ") + checks;
  return std::string(diff.worse() ? "Worse" : "Not worse") +
         " than the base: " + (text.empty() ? "no check changed" : text) + ".";
}

std::string diff_text(const ReportDiff& diff) {
  constexpr size_t kShown = 12;
  std::string out = "before: " + diff.before + "\nafter:  " + diff.after + "\n";
  for (const DefectChapter& chapter : chapters_of_defects(diff))
    for (const ChangedDefect& defect : *chapter.defects)
      out += padded(chapter.title, 14) + change_text(defect) + "\n";
  for (const Chapter& chapter : chapters_of(diff)) {
    const auto& checks = *chapter.checks;
    if (!checks.empty()) out += std::string(chapter.title) + ":\n";
    for (size_t i = 0; i < std::min(checks.size(), kShown); ++i)
      out += "  " + checks[i].group + ": " + checks[i].check + ": " + checks[i].before + " -> " +
             checks[i].after + "\n";
    if (checks.size() > kShown)
      out += "  and " + std::to_string(checks.size() - kShown) + " more\n";
  }
  return out + (diff.worse() ? "WORSE" : "NOT WORSE") + " | " + summary(diff) + "\n";
}

std::string diff_details(const ReportDiff& diff, size_t bytes) {
  Section defects(bytes / 4);
  for (const DefectChapter& chapter : chapters_of_defects(diff))
    for (const ChangedDefect& defect : *chapter.defects)
      defects.add("- **" + std::string(chapter.title) + "** " +
                  markdown_text(change_text(defect), 700) + "\n");
  std::string out = defects.text();
  if (!out.empty()) out += "\n";
  std::vector<Chapter> chapters = chapters_of(diff);
  std::erase_if(chapters, [](const Chapter& chapter) { return chapter.checks->empty(); });
  for (const Chapter& chapter : chapters)
    out += chapter_markdown(chapter, bytes * 3 / 4 / chapters.size());
  return out;
}

std::string diff_markdown(const ReportDiff& diff) {
  constexpr size_t kBytes = 50000;
  return std::string(kDiffMarker) +
         "\n## dsv32-verify: " + (diff.worse() ? "worse than base" : "not worse than base") +
         "\n\nBase: " + markdown_text(diff.before, 600) +
         "  \nHead: " + markdown_text(diff.after, 600) + "\n\n" +
         markdown_text(summary(diff), 400) + "\n\n" + diff_details(diff, kBytes);
}

}  // namespace dsv32::harness
