#include <algorithm>
#include <optional>

#include "harness/judge/judge.h"
#include "harness/training/kl_step.h"
#include "harness/training/kl_training.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

/// The weight of the KL in the joint loss, as in its golden (docs/formats.md 10).
constexpr double kJointWeight = 0.1;

std::optional<golden::TrainingGolden> golden_of(const TrainingJob& job, const KlTask& task) {
  const std::string suite = "indexer_kl_" + task.name;
  if (!golden::training_exists(suite, job.the_case.name)) return std::nullopt;
  return golden::load_training(suite, job.the_case.name);
}

Verdict no_golden(const KlTask& task) {
  Verdict verdict;
  verdict.subject = golden_side(kl_note(task));
  verdict.tap = rule_name("golden.file", "indexer_kl_" + task.name);
  verdict.trust = Trust::missing;
  verdict.note = "make it with golden/make";
  return verdict;
}

Verdict no_curve(const std::string& impl, const KlTask& task) {
  Verdict verdict;
  verdict.subject = judged_side(impl, kl_note(task));
  verdict.tap = curve_name("kl");
  verdict.trust = Trust::skipped;
  verdict.note = "the first step is wrong already: its curve would say nothing more";
  return verdict;
}

}  // namespace

std::vector<KlTask> kl_tasks(const Case& c) {
  const bool tiny = c.config_name == "tiny";
  const int64_t steps = tiny ? 50 : 10;
  std::vector<KlTask> tasks = {
      {"warmup", {.lm = false, .kl = KlStage::warmup}, steps},
      {"sparse", {.lm = false, .kl = KlStage::sparse}, steps},
  };
  if (tiny)
    tasks.push_back({"joint", {.lm = true, .kl = KlStage::sparse, .kl_weight = kJointWeight}, 20});
  return tasks;
}

void judge_kl_task(const TrainingJob& job, const KlTask& task, TrainingResult& result) {
  const auto golden = golden_of(job, task);
  if (!golden) result.verdicts.push_back(no_golden(task));
  TrainingJob right = job;  // those whose first step is right
  right.impls.clear();
  for (const std::string& impl : job.impls) {
    const bool with_golden = golden && impl == job.impls.front();
    std::vector<Verdict> first = judge_kl_step(job, impl, task, with_golden ? &*golden : nullptr);
    append(first, task.objective.lm ? judge_kl_paths(job, impl, task)
                                    : judge_kl_detachment(job, impl, task));
    if (first_failure(first) == nullptr) {
      right.impls.push_back(impl);
    } else {
      first.push_back(no_curve(impl, task));
    }
    append(result.verdicts, std::move(first));
  }
  if (!right.impls.empty()) judge_kl_training(right, task, golden ? &*golden : nullptr, result);
}

TrainingResult judge_indexer_kl(const TrainingJob& job) {
  TrainingResult result;
  for (const KlTask& task : kl_tasks(job.the_case)) judge_kl_task(job, task, result);
  return result;
}

}  // namespace dsv32::harness
