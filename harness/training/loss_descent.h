#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "harness/training/suite.h"
#include "src/training/trainer.h"

/// The parts of the loss_descent suite, for tests that ask for less than all of it.
namespace dsv32::harness {

/// One descent that is judged.
struct Descent {
  std::string golden;  // "loss_descent", "loss_descent_memorised"
  training::Recipe recipe;
  std::string note;  // behind the subject: ", memorised"
};
/// AdamW lr 1e-3, betas 0.9/0.95, clip 1: the golden's recipe for this case.
Descent full_descent(const Case& c);
/// One batch over and over, AdamW lr 1e-4, betas 0.9/0.999, no clip.
Descent memorised_descent(const Case& c);

/// How much of it.
struct DescentPlan {
  int64_t steps = 0;  // of the recipe, from the first
  std::function<bool(int64_t)> judged = [](int64_t) { return true; };  // step by step
  bool free = true;     // the curve with own decisions
  bool golden = true;   // the golden against the oracle
  bool narrow = false;  // figures of a bfloat16 model with float32 masters
};
/// Every part, for every step of a tiny case and for some steps of a larger one.
DescentPlan full_plan(const Case& c, const Descent& descent);

TrainingResult judge_descent(const TrainingJob& job, const Descent& descent,
                             const DescentPlan& plan);
/// Two steps of two micro-batches each, step by step, under the first implementation's decisions.
TrainingResult judge_accumulation(const TrainingJob& job);

}  // namespace dsv32::harness
