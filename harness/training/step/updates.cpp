#include "harness/training/step/updates.h"

#include <algorithm>
#include <cstdio>

#include "harness/judge/limits.h"
#include "harness/training/step/evidence.h"
#include "harness/training/step/explain.h"
#include "harness/training/step/narrow.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

class StepUpdateJudge {
 public:
  StepUpdateJudge(const Candidate& candidate, const golden::TrainingGolden& golden)
      : candidate_(candidate), evidence_(candidate, golden) {}

  StepUpdates run() {
    if (!evidence_.any_update(0)) return {};
    evidence_.collect();
    const std::vector<Updates> expected = evidence_.expected(Rule{});
    for (size_t t = 0; t < expected.size(); ++t) judge_step(t, expected[t]);
    const bool failed = std::any_of(out_.verdicts.begin(), out_.verdicts.end(),
                                    [](const Verdict& v) { return v.trust == Trust::fail; });
    if (failed) out_.diagnosis = explain_updates(evidence_, out_.verdicts, expected);
    return std::move(out_);
  }

 private:
  Verdict open(size_t step, const std::string& name) const {
    return {.subject = candidate_.subject,
            .tap = step_name(static_cast<int64_t>(step), "update", name),
            .layer = weight_layer(name),
            .mode = Mode::forced};
  }

  void judge_step(size_t t, const Updates& expected) {
    Verdict all = open(t, evidence_.names().front());
    all.tap = step_name(static_cast<int64_t>(t), "updates");
    all.layer.reset();
    all.checked = std::ssize(expected.values);
    const Where where{.dtype = evidence_.dtype()};
    all.measures.push_back(
        by_limit("candidate.updates", where, evidence_.distance(t, expected).relative()));
    if (is_narrow(evidence_.dtype())) {
      const FaultShare fault = largest_share(evidence_, t);
      all.measures.push_back(by_limit("candidate.fault", where, fault.share));
      if (!all.measures.back().within()) all.structure = fault.words;
    }
    settle(all);
    out_.verdicts.push_back(std::move(all));
    for (const std::string& name : names_in_order())
      if (evidence_.update(t, name) != nullptr)
        out_.verdicts.push_back(expected.values.contains(name) ? moved(t, name, expected)
                                                               : frozen(t, name));
  }

  /// Factors first, where adapters are trained; then every weight.
  std::vector<std::string> names_in_order() const {
    std::vector<std::string> names;
    for (const std::string& name : evidence_.names())
      if (is_factor(name)) names.push_back(name);
    for (const WeightSpec& spec : weight_specs(candidate_.the_case.config))
      if (!is_buffer(spec.name)) names.push_back(spec.name);
    return names;
  }

  Verdict frozen(size_t t, const std::string& name) const {
    const HostTensor& own = *evidence_.update(t, name);
    Verdict verdict = open(t, name);
    verdict.checked = own.numel();
    int64_t moved = 0;
    for (int64_t i = 0; i < own.numel(); ++i) moved += own.at(i) != 0 ? 1 : 0;
    verdict.measures.push_back({"exact", static_cast<double>(moved), 0,
                                "the golden's recipe does not move this parameter"});
    settle(verdict);
    return verdict;
  }

  Verdict moved(size_t t, const std::string& name, const Updates& expected) const {
    Verdict verdict = open(t, name);
    const DType kept = evidence_.stored(name);
    const Standing moving = standing(evidence_, t, name, expected);
    verdict.checked = is_narrow(kept) ? moving.seen : evidence_.told(t, name, expected);
    if (verdict.checked == 0) {
      verdict.trust = Trust::skipped;
      verdict.note = is_narrow(kept) ? "its updates are lost in rounding to " +
                                           std::string(to_string(kept)) + ", rightly so"
                                     : "its gradient is rounding noise beside AdamW's eps";
      return verdict;
    }
    const Where where{.dtype = evidence_.dtype()};
    const Distance d = evidence_.distance(t, name, expected);
    verdict.measures.push_back(by_limit("candidate.update", where, d.relative()));
    if (moving.seen >= kFewest) {
      const double still = static_cast<double>(moving.still) / static_cast<double>(moving.seen);
      verdict.measures.push_back(by_limit("candidate.still", where, still));
    }
    verdict.gain = evidence_.gain(t, name, expected);
    if (verdict.gain) verdict.structure = "gain " + text(*verdict.gain);
    settle(verdict);
    if (verdict.trust != Trust::fail) verdict.structure.clear();
    return verdict;
  }

  static constexpr int64_t kFewest = 32;  // elements of which a share says something

  static std::string text(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.4g", value);
    return text;
  }

  const Candidate& candidate_;
  StepEvidence evidence_;
  StepUpdates out_;
};

}  // namespace

StepUpdates judge_step_updates(const Candidate& candidate, const golden::TrainingGolden& golden) {
  return StepUpdateJudge(candidate, golden).run();
}

std::vector<std::pair<std::string, std::string>> step_fault_names() {
  std::vector<std::pair<std::string, std::string>> rows;
  for (const StepFault& fault : step_faults()) rows.emplace_back(fault.name, fault.words);
  for (const auto& row : other_step_faults()) rows.push_back(row);
  return rows;
}

}  // namespace dsv32::harness
