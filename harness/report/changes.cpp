#include "harness/report/changes.h"

#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "harness/report/text.h"

namespace dsv32::harness {
namespace {

/// The names in "a or b or 1 more".
std::set<std::string> alternatives(const std::string& name) {
  constexpr std::string_view kOr = " or ";
  std::set<std::string> names;
  size_t from = 0;
  for (size_t at; (at = name.find(kOr, from)) != std::string::npos; from = at + kOr.size())
    names.insert(name.substr(from, at - from));
  names.insert(name.substr(from));
  return names;
}

/// A case may not tell two defects apart that another one does.
bool is_same(const std::string& a, const std::string& b) {
  const std::set<std::string> names = alternatives(a);
  for (const std::string& name : alternatives(b))
    if (names.contains(name) && !name.ends_with(" more")) return true;
  return false;
}

/// What is wrong in a report, by what makes it the same thing in another one.
struct Wrong {
  std::vector<std::pair<std::string, Change>> list;

  void add(const std::string& key, const std::string& words, const std::string& case_name) {
    auto known = std::find_if(list.begin(), list.end(),
                              [&](const auto& entry) { return is_same(entry.first, key); });
    if (known == list.end()) known = list.insert(list.end(), {key, {.words = words}});
    auto& cases = known->second.cases;
    if (std::find(cases.begin(), cases.end(), case_name) == cases.end()) cases.push_back(case_name);
  }

  bool has(const std::string& key) const {
    return std::any_of(list.begin(), list.end(),
                       [&](const auto& entry) { return is_same(entry.first, key); });
  }
};

Wrong wrong_in(const Report& report) {
  Wrong wrong;
  for (const Finding& finding : report.findings) {
    if (finding.fault == Fault::none) continue;
    for (const Defect& defect : finding.defects) {
      const std::string tap = defect.taps.empty() ? finding.first_tap : defect.taps.front();
      wrong.add(defect.unexplained() ? "unexplained " + tap : defect.name, defect.words,
                finding.case_name);
    }
    // A crash, weights that were not loaded: a rule, and no defect of a tap.
    if (finding.defects.empty())
      wrong.add("first " + finding.first_tap, finding.headline, finding.case_name);
  }
  return wrong;
}

std::map<std::string, Trust> answers(const Report& report) {
  std::map<std::string, Trust> by_check;
  for (const Verdict& verdict : report.verdicts) {
    const std::string name =
        check_path(verdict) + " (" + std::string(to_string(verdict.mode)) + ")";
    Trust& trust = by_check.try_emplace(name, verdict.trust).first->second;
    if (verdict.trust == Trust::fail) trust = Trust::fail;
  }
  return by_check;
}

bool answered(Trust trust) { return trust == Trust::pass || trust == Trust::fail; }

void compare_checks(const Report& base, const Report& head, Changes& changes) {
  const auto before = answers(base), now = answers(head);
  for (const auto& [name, trust] : before) {
    const auto found = now.find(name);
    const bool gone = found == now.end() || !answered(found->second);
    if (answered(trust) && gone) changes.untested.push_back(name);
    if (trust != Trust::fail || gone) continue;
    ++(found->second == Trust::fail ? changes.checks_still : changes.checks_fixed);
  }
  for (const auto& [name, trust] : now) {
    const auto found = before.find(name);
    if (trust == Trust::fail && (found == before.end() || found->second != Trust::fail))
      ++changes.checks_broken;
  }
}

std::string cases_text(const Change& change) {
  std::string text;
  for (const std::string& name : change.cases) text += (text.empty() ? "" : ", ") + printable(name);
  return text;
}

struct Section {
  const char* word;
  const std::vector<Change>& list;
  size_t checks;
};

std::vector<Section> sections(const Changes& changes) {
  return {{"fixed", changes.fixed, changes.checks_fixed},
          {"broken", changes.broken, changes.checks_broken},
          {"still wrong", changes.still, changes.checks_still}};
}

}  // namespace

Changes defects_changed(const Report& base, const Report& head) {
  Changes changes;
  const Wrong before = wrong_in(base), now = wrong_in(head);
  for (const auto& [key, change] : before.list)
    if (!now.has(key)) changes.fixed.push_back(change);
  for (const auto& [key, change] : now.list)
    (before.has(key) ? changes.still : changes.broken).push_back(change);
  compare_checks(base, head, changes);
  return changes;
}

std::string to_text(const Changes& changes) {
  constexpr size_t kWord = 12;
  std::string text = "against the base:\n";
  for (const auto& [word, list, checks] : sections(changes)) {
    text += "  " + padded(word, kWord) + counted(list.size(), "defect") + ", " +
            counted(checks, "check") + "\n";
    for (const Change& change : list)
      text += "    " + printable(change.words) + " (" + cases_text(change) + ")\n";
  }
  if (!changes.untested.empty())
    text += "  " + padded("untested", kWord) + counted(changes.untested.size(), "check") +
            " that the base has an answer for\n";
  return text;
}

std::string to_markdown(const Changes& changes) {
  std::string text = "### Against the base\n\n| | defects | checks |\n|---|---|---|\n";
  for (const auto& [word, list, checks] : sections(changes)) {
    std::string defects;
    for (const Change& change : list)
      defects += (defects.empty() ? "" : "<br>") + markdown_text(change.words) + " (" +
                 markdown_text(cases_text(change)) + ")";
    text += std::string("| ") + word + " | " + (defects.empty() ? "none" : defects) + " | " +
            std::to_string(checks) + " |\n";
  }
  text += "| newly untested | | " + std::to_string(changes.untested.size()) + " |\n";
  return text;
}

}  // namespace dsv32::harness
