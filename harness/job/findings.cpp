#include "harness/job/findings.h"

#include <algorithm>
#include <set>

#include "harness/judge/judge.h"
#include "harness/report/groups.h"
#include "src/io/print.h"
#include "src/model/check_name.h"
#include "src/model/trace.h"

namespace dsv32::harness {
namespace {

bool contains(const std::vector<std::string>& list, const std::string& word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

std::string headline(const Verdict& failure) {
  std::string text =
      "first divergence " + failure.tap + " (" + std::string(to_string(failure.mode)) + ")";
  if (const Measure* worst = worst_measure(failure)) {
    text += ": " + worst->metric + " " + io::number(worst->measured) + ", limit " +
            io::number(worst->limit);
  }
  return text;
}

/// What a crash left: how far the run was right.
std::string crash_headline(const Verdict& crash, const std::vector<Verdict>& verdicts) {
  std::set<std::string> reached, wrong;
  for (const Verdict& v : verdicts) {
    const bool tap = check_of(v.tap).scope == CheckScope::model && v.mode != Mode::exact;
    if (tap && (v.trust == Trust::pass || v.trust == Trust::fail)) reached.insert(v.tap);
    if (tap && v.trust == Trust::fail) wrong.insert(v.tap);
  }
  const std::string taps =
      std::to_string(reached.size()) + (reached.size() == 1 ? " tap" : " taps");
  if (reached.empty()) return crash.note + "; no tap before it is in the file";
  if (!wrong.empty())
    return crash.note + "; of " + taps + " before it " + std::to_string(wrong.size()) + " wrong";
  return crash.note + "; " + taps + " before it " + (reached.size() == 1 ? "is" : "are") + " right";
}

/// The taps of the chosen suites: gradients belong to `backward`, everything else to `forward`. A
/// golden that is missing is never left out: without it nothing was checked.
bool selected(const Job& job, const Verdict& verdict) {
  const CheckName check = check_of(verdict.tap);
  if (check.what == "golden.file") return true;
  const bool of_model = verdict.suite.empty() && check.scope != CheckScope::rule;
  const bool goes_back =
      is_gradient_check(verdict.tap) || parse_slope(verdict.tap) || check.scope == CheckScope::step;
  const char* suite = goes_back ? "backward" : "forward";
  if (of_model && !contains(job.suites, suite)) return false;
  return job.filter.empty() || check_path(verdict).find(job.filter) != std::string::npos;
}

/// Who is at fault for a failure of this party. A golden that is not there does not fail.
Fault blamed(Party party, bool golden_ok, bool reference_ok) {
  std::optional<bool> candidate_ok;
  if (party == Party::optimized || party == Party::candidate) candidate_ok = false;
  const Fault fault = arbitrate(golden_ok, /*golden_present=*/true, reference_ok, candidate_ok);
  return party == Party::optimized && fault == Fault::candidate ? Fault::optimized : fault;
}

}  // namespace

Findings::Findings(const Job& job, Report& report, std::string case_name, std::string suite)
    : job_(job), report_(report), case_name_(std::move(case_name)), suite_(std::move(suite)) {}

Findings::Entry& Findings::entry_of(const Subject& subject) {
  const auto known = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return entry.finding.subject == subject;
  });
  if (known != entries_.end()) return *known;
  const Finding finding{.case_name = case_name_, .subject = subject, .suite = suite_};
  return entries_.emplace_back(Entry{.finding = finding});
}

void Findings::add(const Subject& subject, std::vector<Verdict> verdicts,
                   const Diagnosis& diagnosis) {
  Finding& finding = entry_of(subject).finding;
  const auto append = [](auto& known, const auto& more) {
    known.insert(known.end(), more.begin(), more.end());
  };
  append(finding.causes, diagnosis.causes);
  append(finding.defects, diagnosis.defects);
  if (finding.profile.empty()) finding.profile = diagnosis.profile;
  for (Verdict& verdict : verdicts) verdict.subject = subject;
  add(std::move(verdicts));
}

void Findings::add(std::vector<Verdict> verdicts) {
  for (Verdict& verdict : verdicts) {
    Entry& entry = entry_of(verdict.subject);
    if (job_.accept_weak && verdict.trust == Trust::undecided) {
      verdict.trust = Trust::pass;
      verdict.note = "accepted as weak evidence: " + verdict.note;
    }
    verdict.case_name = case_name_;
    verdict.suite = suite_;
    if (selected(job_, verdict)) entry.verdicts.push_back(std::move(verdict));
  }
}

std::vector<Witness> Findings::witnesses() const {
  std::vector<Witness> found;
  for (const Entry& entry : entries_) {
    if (entry.finding.subject.party == Party::candidate) continue;
    const Counts counts = count(entry.verdicts);
    found.push_back(
        {.subject = entry.finding.subject, .checks = counts.executed(), .failed = counts.fail});
  }
  return found;
}

void Findings::recall(const std::vector<Witness>& witnesses) { recalled_ = witnesses; }

bool Findings::failed(Party party) const {
  const bool before = std::any_of(recalled_.begin(), recalled_.end(), [&](const Witness& w) {
    return w.subject.party == party && w.failed > 0;
  });
  return before || std::any_of(entries_.begin(), entries_.end(), [&](const Entry& entry) {
           return entry.finding.subject.party == party && entry.failed();
         });
}

/// A file none of whose checks ran is not green, unless -k left it out.
void Findings::mark_unchecked() {
  if (!job_.filter.empty()) {
    for (const Entry& entry : entries_)
      if (entry.finding.subject.party == Party::candidate && entry.verdicts.empty())
        report_.not_tested.push_back(entry.finding.subject.label + ": not selected by -k " +
                                     job_.filter);
    return;
  }
  const std::string about_the_case = rule_name("selection.exercised");
  for (Entry& entry : entries_) {
    const Subject& subject = entry.finding.subject;
    const bool ran =
        std::any_of(entry.verdicts.begin(), entry.verdicts.end(), [&](const Verdict& verdict) {
          return verdict.trust != Trust::skipped && verdict.tap != about_the_case;
        });
    if (subject.party != Party::candidate || ran) continue;
    entry.verdicts.push_back({.case_name = case_name_,
                              .suite = suite_,
                              .subject = subject,
                              .tap = rule_name("taps"),
                              .trust = Trust::vacuous,
                              .note = "no check of this candidate ran"});
  }
}

/// The pictures that a report shows: of the first three defects, else of the first failure.
static void keep_pictures(const Finding& finding, std::vector<Verdict>& verdicts) {
  constexpr size_t kPictures = 3;
  std::vector<std::string> wanted;
  for (const Defect& defect : finding.defects) {
    const auto drawn = std::find_if(verdicts.begin(), verdicts.end(), [&](const Verdict& v) {
      return v.picture && contains(defect.taps, v.tap);
    });
    if (drawn != verdicts.end() && wanted.size() < kPictures) wanted.push_back(drawn->tap);
  }
  if (finding.defects.empty()) wanted.push_back(finding.first_tap);
  for (Verdict& verdict : verdicts) {
    const auto at = std::find(wanted.begin(), wanted.end(), verdict.tap);
    if (at == wanted.end() || !verdict.picture) {
      verdict.picture.reset();
    } else {
      wanted.erase(at);  // in its first mode alone
    }
  }
}

void Findings::settle() {
  mark_unchecked();
  for (auto& [finding, verdicts] : entries_) {
    const Verdict* failure = first_failure(verdicts);
    if (failure == nullptr) continue;
    finding.first_tap = failure->tap;
    keep_pictures(finding, verdicts);
    finding.headline =
        finding.defects.empty() ? headline(*failure) : headline_of(finding.defects.front());
    if (failure->tap == rule_name("run.finished"))
      finding.headline = crash_headline(*failure, verdicts);
  }
  const bool golden_ok = !failed(Party::golden), reference_ok = !failed(Party::reference);
  for (Entry& entry : entries_) {
    if (entry.failed())
      entry.finding.fault = blamed(entry.finding.subject.party, golden_ok, reference_ok);
    report_.findings.push_back(std::move(entry.finding));
    std::move(entry.verdicts.begin(), entry.verdicts.end(), std::back_inserter(report_.verdicts));
  }
  entries_.clear();
}

}  // namespace dsv32::harness
