#include "harness/training/step/book.h"

#include "harness/judge/compare.h"
#include "src/model/check_name.h"

namespace dsv32::harness {

std::string name_in_step(int64_t step, const std::string& check) {
  const CheckName name = check_of(check);
  return step_name(step, name.what, name.of);
}

void StepBook::keep(int64_t step, Verdict verdict) {
  const std::string tap = verdict.tap;
  const bool bad = verdict.trust != Trust::pass;
  const std::string where = "step " + std::to_string(step);
  if (bad && failures_++ == 0) first_bad_ = name_in_step(step, tap);
  ++kept_;
  verdict.note += (verdict.note.empty() ? "" : "; ") + std::string(bad ? "bad in " : "worst in ");
  verdict.note += where;
  const auto [known, fresh] = worst_.try_emplace(tap, verdict);
  if (fresh) return order_.push_back(tap);
  const int64_t checked = known->second.checked + verdict.checked;
  const bool was_good = known->second.trust == Trust::pass;
  if (was_good && (bad || verdict.margin() > known->second.margin()))
    known->second = std::move(verdict);
  known->second.checked = checked;
}

std::vector<Verdict> StepBook::verdicts(const Subject& subject) const {
  Verdict summary;
  summary.subject = subject;
  summary.tap = steps_name();
  summary.mode = Mode::forced;
  summary.checked = kept_;
  summary.measures.push_back(
      {"exact", static_cast<double>(failures_), 0, "no tap fails in any step"});
  if (failures_ > 0) summary.note = "first bad: " + first_bad_;
  settle(summary);
  if (kept_ == 0) summary.trust = Trust::vacuous;
  std::vector<Verdict> all = {summary};
  for (const std::string& tap : order_) all.push_back(worst_.at(tap));
  return all;
}

}  // namespace dsv32::harness
