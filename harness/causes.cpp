#include "harness/causes.h"

#include "harness/judge.h"

namespace dsv32::harness {
namespace {

std::vector<std::string> matching_dialects(const CaseRun& run, const Subject& subject, const Verdict& failure) {
  std::vector<std::string> causes;
  for (const Dialect& preset : dialect_presets()) {
    if (same_function(run.the_case().config, subject.dtype, preset, subject.dialect)) continue;
    if (!run.explains(subject, preset, failure)) continue;
    Subject renamed = subject;
    renamed.dialect = preset;
    if (first_failure(run.judge_subject(renamed)) != nullptr) continue;
    causes.push_back("matches dialect " + preset.name + ": " + dialect_consequence(preset.name) +
                     "; declare it with --dialect " + preset.name);
  }
  return causes;
}

std::vector<std::string> matching_bugs(const CaseRun& run, const Subject& subject, const Verdict& failure) {
  std::vector<std::string> causes;
  const std::string stem = tap_stem(failure.tap);
  for (const KnownBug& bug : known_bugs()) {
    if (bug.first_tap != stem) continue;
    Dialect planted = subject.dialect;
    bug.plant(planted);
    if (run.explains(subject, planted, failure)) causes.push_back("known bug " + bug.name + ": " + bug.description);
  }
  return causes;
}

}  // namespace

std::vector<std::string> find_causes(const CaseRun& run, const Subject& subject, const std::vector<Verdict>& verdicts) {
  const Verdict* failure = first_failure(verdicts);
  if (failure == nullptr || !parse_tap(failure->tap)) return {};
  std::vector<std::string> causes = matching_dialects(run, subject, *failure);
  if (causes.empty()) causes = matching_bugs(run, subject, *failure);
  return causes;
}

}  // namespace dsv32::harness
