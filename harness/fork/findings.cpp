#include <algorithm>
#include <string_view>

#include "harness/fork/fork.h"
#include "src/io/print.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

constexpr char kSource[] = "source";  // in the place of a case: about the files, not about numbers

Verdict verdict_on_source(const io::DumpEvent& modular) {
  const bool same = modular.state == "same";
  return {.case_name = kSource,
          .subject = {.party = Party::candidate, .label = "candidate " + modular.file},
          .tap = rule_name("source.generated"),
          .mode = Mode::exact,
          .trust = same ? Trust::pass : Trust::fail,
          .checked = 1,
          .note = same ? "the generated file is what it generates" : modular.note};
}

Finding finding_on_source(const Verdict& verdict) {
  Finding finding{.case_name = kSource, .subject = verdict.subject};
  if (verdict.trust != Trust::fail) return finding;
  finding.fault = Fault::candidate;
  finding.first_tap = verdict.tap;
  const Defect defect{.name = "generated-file-edited",
                      .words =
                          "the generated modeling file is not what its modular file says: "
                          "the next conversion changes it",
                      .evidence = verdict.note,
                      .taps = {verdict.tap}};
  finding.headline = defect.words;
  finding.defects = {defect};
  return finding;
}

/// A forward dump has no gradients, and the backward dump of its case does.
void drop_known_gaps(const ForkDumps& dumps, Report& report) {
  constexpr std::string_view kForward = ".forward.safetensors";
  const auto has_backward = [&](const std::string& case_name) {
    return std::any_of(dumps.traces.begin(), dumps.traces.end(), [&](const auto& trace) {
      return trace.filename() == case_name + ".backward.safetensors";
    });
  };
  std::erase_if(report.verdicts, [&](const Verdict& v) {
    return v.trust == Trust::skipped && is_gradient_check(v.tap) &&
           v.subject.label.ends_with(kForward) && has_backward(v.case_name);
  });
}

/// A dump that could not be asked for: nothing was tested, and nothing is green.
void add_refused(const FailedDump& failed, Report& report) {
  const Subject subject{.party = Party::candidate,
                        .label = "candidate " + failed.job.out.filename().string()};
  report.verdicts.push_back({.case_name = failed.job.case_name,
                             .subject = subject,
                             .tap = rule_name("run.finished"),
                             .mode = Mode::exact,
                             .trust = Trust::missing,
                             .note = "no dump of it: " + failed.message});
  report.findings.push_back({.case_name = failed.job.case_name, .subject = subject});
}

}  // namespace

void add_findings(const Fork& fork, const ForkDumps& dumps, Report& report) {
  const io::DumpEvent& modular = dumps.modular;
  if (modular.state == "same" || modular.state == "differs") {
    const Verdict verdict = verdict_on_source(modular);
    report.findings.insert(report.findings.begin(), finding_on_source(verdict));
    report.verdicts.insert(report.verdicts.begin(), verdict);
  } else if (modular.state == "untested") {
    report.not_tested.push_back("whether " + modular.file +
                                " was edited in its generated file: " + modular.note);
  }
  drop_known_gaps(dumps, report);
  for (const FailedDump& failed : dumps.failed)
    if (failed.refused) add_refused(failed, report);
  report.not_tested.insert(report.not_tested.end(), dumps.not_tested.begin(),
                           dumps.not_tested.end());
  report.environment["fork"] = fork.tree ? fork.tree->string() : "installed transformers";
  report.environment["fork python"] = fork.python;
  if (!dumps.imported.version.empty())
    report.environment["fork transformers"] = dumps.imported.version + " " + dumps.imported.path;
}

}  // namespace dsv32::harness
