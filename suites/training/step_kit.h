#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "golden/reader/training_golden.h"
#include "harness/training/step/rules.h"
#include "harness/training/step/updates.h"

/// Candidates of single training steps, with and without faults, and what is said of them.
namespace dsv32::suites {

/// The judged updates of a candidate of this case, against this suite's golden.
harness::StepUpdates judged(const std::string& case_name, const std::string& golden, Trace trace);

/// The first finding: "clip-missing: the gradients are not clipped"; "nothing".
std::string told(const harness::StepUpdates& updates);
/// One finding, of this name and with these words in it.
void expect_named(const harness::StepUpdates& updates, const std::string& name,
                  const std::string& words);
/// Nothing fails, and at least so many checks were made.
void expect_green(const harness::StepUpdates& updates, size_t checks = 100);

/// What becomes of the gradients of a step's parts; `read`: the weights of that step.
using Change =
    std::function<void(int64_t step, harness::Parts& parts, const harness::Tensors& read)>;

/// Two steps by a rule on a golden's recipe, as a candidate would hand them in.
Trace by_rule(const Case& c, const golden::TrainingGolden& golden, const harness::Rule& rule,
              const Change& change = {});

}  // namespace dsv32::suites
