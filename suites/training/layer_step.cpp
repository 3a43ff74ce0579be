// The AdamW step of a layer that is judged alone.

#include "harness/training/layer_step.h"

#include <gtest/gtest.h>

#include <set>

#include "harness/cases/implementations.h"
#include "src/io/io.h"

namespace dsv32::suites {
namespace {

using harness::Trust;
using harness::Verdict;

std::vector<Verdict> verdicts_of(const std::string& impl, training::Bug bug) {
  const harness::CaseRun run(io::find_case("tiny-wide"), false);
  harness::JudgedTrace subject{.subject = harness::implementation_subject(impl, ""), .impl = impl};
  subject.against_reference = subject.subject.party != harness::Party::reference;
  const harness::LayerRunOptions options{
      .selection = harness::parse_layers("1", run.the_case().config),
      .forward = false,
      .backward = true,
      .step = harness::adamw_step(bug)};
  return harness::judge_layers(run, {subject}, options).front().verdicts;
}

bool is_update(const Verdict& verdict) { return verdict.tap.starts_with("step.0.update."); }

TEST(LayerStep, OfEachImplementationIsRight) {
  for (const char* impl : {"reference", "optimized"}) {
    int64_t updates = 0, gradients = 0;
    for (const Verdict& v : verdicts_of(impl, training::Bug::none)) {
      EXPECT_EQ(v.trust, Trust::pass) << impl << " " << v.tap;
      updates += is_update(v) ? 1 : 0;
      gradients += v.tap.starts_with("grad.") ? 1 : 0;
    }
    EXPECT_GT(updates, 0);
    EXPECT_EQ(updates, gradients) << impl;
  }
}

TEST(LayerStep, WithAnotherLearningRateIsCaught) {
  const std::vector<Verdict> verdicts = verdicts_of("reference", training::Bug::lr_1_05);
  std::set<std::string> idle;  // weights of experts without tokens, which decay alone
  for (const Verdict& v : verdicts)
    if (v.note.find("exactly zero") != std::string::npos)
      idle.insert("step.0.update." + v.tap.substr(std::string("grad.").size()));
  for (const Verdict& v : verdicts)
    EXPECT_EQ(v.trust, is_update(v) && !idle.contains(v.tap) ? Trust::fail : Trust::pass) << v.tap;
  EXPECT_TRUE(is_update(*harness::first_failure(verdicts)));
}

}  // namespace
}  // namespace dsv32::suites
