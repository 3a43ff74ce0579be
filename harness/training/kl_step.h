#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "golden/reader/training_golden.h"
#include "harness/training/suite.h"
#include "src/model/weights.h"

/// The first step of the indexer's KL training: taps, gradients, who gets none, and why.
namespace dsv32::harness {

/// One of the suite's three objectives.
struct KlTask {
  std::string name;  // "warmup", "sparse", "joint": of the golden indexer_kl_<name>
  Objective objective;
  int64_t steps = 0;
  bool whole = true;  // false: fewer steps than the recipe's; what needs all of them is not judged
};
/// The recipes of the goldens of a case.
std::vector<KlTask> kl_tasks(const Case& c);
/// One of them: its first step, then the training unless that is wrong already.
void judge_kl_task(const TrainingJob& job, const KlTask& task, TrainingResult& result);
/// What sets the subjects of a task apart: ", warmup".
std::string kl_note(const KlTask& task);

/// Taps and gradients of an implementation's first step, and of the golden where it keeps them,
/// against oracle and reference.
[[nodiscard]] std::vector<Verdict> judge_kl_step(const TrainingJob& job, const std::string& impl,
                                                 const KlTask& task,
                                                 const golden::TrainingGolden* golden);
/// The loss moves when what feeds the indexer is moved, and yet the weights behind it have no
/// gradient: the inputs are detached.
[[nodiscard]] std::vector<Verdict> judge_kl_detachment(const TrainingJob& job,
                                                       const std::string& impl, const KlTask& task);
/// Every parameter's gradient under LM + weight * KL is the one of its own objective alone.
[[nodiscard]] std::vector<Verdict> judge_kl_paths(const TrainingJob& job, const std::string& impl,
                                                  const KlTask& joint);

}  // namespace dsv32::harness
