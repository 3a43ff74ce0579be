// The dual LoRA suite must catch every planted bug, name the right check, and never cry wolf.

#include <gtest/gtest.h>

#include <map>

#include "harness/judge/judge.h"
#include "harness/training/suite.h"
#include "src/io/io.h"
#include "suites/kit/clean_runs.h"

namespace dsv32::suites {
namespace {

using harness::TrainingJob;
using harness::Trust;
using harness::Verdict;
using training::Bug;

TrainingJob job() { return {.the_case = io::find_case("tiny-wide")}; }

/// Failing checks of one side by name, with their notes.
std::map<std::string, std::string> failing(Bug bug, const std::string& side) {
  TrainingJob task = job();
  task.bug = bug;
  std::map<std::string, std::string> found;
  for (const Verdict& v : judge_dual_lora(task).verdicts)
    if (v.subject.label == side && v.trust == Trust::fail) found[v.tap] = v.note;
  return found;
}

std::string names(const std::map<std::string, std::string>& found) {
  std::string text;
  for (const auto& [name, note] : found) text += name + ": " + note + "\n";
  return text;
}

constexpr char kLayer0[] = "model.layers.0.";

struct Row {
  Bug bug;
  std::string check;  // that must fail
  std::string place;  // that its note must name
  std::string side = "reference float32";
};

class SelfDualLora : public testing::TestWithParam<Row> {};

TEST_P(SelfDualLora, BugIsCaughtAtItsPlace) {
  const Row& row = GetParam();
  const std::map<std::string, std::string> found = failing(row.bug, row.side);
  ASSERT_EQ(found.count(row.check), 1u) << names(found);
  EXPECT_NE(found.at(row.check).find(row.place), std::string::npos) << found.at(row.check);
}

const std::string kFirst = "first bad: step.0.";
const std::string kExperts = "reference float32, routed experts";
const std::string kAttention = std::string(kLayer0) + "self_attn.";

INSTANTIATE_TEST_SUITE_P(
    Bugs, SelfDualLora,
    testing::Values(
        Row{Bug::lora_placeholder_kl, "steps", kFirst + "kl"},
        Row{Bug::lora_one_lr, "steps", kFirst + "update." + kAttention + "indexer.wq_b.lora_"},
        Row{Bug::lora_wrong_projection, "steps",
            kFirst + "grad." + kLayer0 + "mlp.gate_proj.lora_B.weight"},
        Row{Bug::lora_wrong_projection, "lora.scale", "gate_proj"},
        Row{Bug::lora_scale_alpha, "steps",
            kFirst + "grad." + kAttention + "q_a_proj.lora_B.weight"},
        Row{Bug::lora_scale_alpha, "lora.scale", "scale 16.000000 in place of 2.0"},
        Row{Bug::lora_transposed, "steps", kFirst + "grad." + kAttention + "o_proj.lora_B.weight"},
        Row{Bug::lora_transposed, "lora.scale", "o_proj"},
        Row{Bug::lora_merge_twice, "end.logits.merged", ""},
        Row{Bug::lora_merge_twice, "lora.merge", ""},
        Row{Bug::lora_unmerge_subtracts, "lora.base", kAttention + "q_a_proj.weight"},
        Row{Bug::lora_kl_leak, "lora.kl_alone", kAttention + "q_a_proj.lora_B.weight"},
        Row{Bug::lora_expert_columns, "steps", "experts.", kExperts},
        Row{Bug::lora_expert_halves, "steps", "experts.", kExperts},
        Row{Bug::lora_kv_b_ignored, "steps", "first bad: step.1.loss"},
        Row{Bug::lora_target_ignored, "steps", "indexer.wq_b"},
        Row{Bug::lora_kl_leak, "steps", kFirst + "grad." + kAttention + "q_a_proj.lora_B.weight"}));

TEST(SelfDualLoraClean, CleanRunsAreGreen) {
  expect_clean_runs(job(), harness::judge_dual_lora, /*first_seed=*/0);
}

}  // namespace
}  // namespace dsv32::suites
