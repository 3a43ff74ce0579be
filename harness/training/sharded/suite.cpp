#include <algorithm>

#include "golden/reader/training_golden.h"
#include "harness/training/replay.h"
#include "harness/training/sharded/run.h"
#include "harness/training/side.h"
#include "src/io/io.h"
#include "src/model/check_name.h"
#include "src/training/rank_env.h"

namespace dsv32::harness {
namespace {

constexpr int kGoldenRanks = 2;
constexpr int64_t kGoldenAccumulation = 3;

ShardedPlan plan_of(const TrainingJob& job, int ranks, int64_t steps, int64_t accumulation = 1) {
  return {.case_name = job.the_case.name,
          .ranks = ranks,
          .steps = steps,
          .accumulation = accumulation,
          .bug = job.bug,
          .perturbation_seed = job.perturbation_seed,
          .device = job.settings.device};
}

bool is_tiny(const TrainingJob& job) { return job.the_case.config_name == "tiny"; }

/// Real DeepSpeed's worlds: how many steps each golden has.
std::vector<ShardedPlan> golden_plans(const TrainingJob& job) {
  constexpr int64_t kTinySteps = 4, kSmallSteps = 2;
  if (!is_tiny(job)) return {plan_of(job, kGoldenRanks, kSmallSteps)};
  return {plan_of(job, kGoldenRanks, kTinySteps),
          plan_of(job, kGoldenRanks, kTinySteps, kGoldenAccumulation)};
}

/// Every world of this case: the goldens', and those of other sizes.
std::vector<ShardedPlan> plans_of(const TrainingJob& job) {
  std::vector<ShardedPlan> plans = golden_plans(job);
  if (!is_tiny(job)) return plans;
  constexpr int64_t kSteps = 2;
  for (const int ranks : {1, 3, 4, 8}) plans.push_back(plan_of(job, ranks, kSteps));
  ShardedPlan frozen = plan_of(job, 3, kSteps), lora = plan_of(job, kGoldenRanks, kSteps);
  frozen.kind = ShardedKind::frozen;
  lora.kind = ShardedKind::lora;
  plans.push_back(frozen);
  plans.push_back(lora);
  return plans;
}

/// The same world of another implementation.
ShardedPlan with_impl(ShardedPlan plan, const std::string& impl) {
  plan.impl = impl;
  return plan;
}

double tokens_of(const TrainingJob& job, const ShardedPlan& plan) {
  return static_cast<double>(plan.steps * job.the_case.B * job.the_case.S);
}

void add_figures(const ShardedPlan& plan, const ShardedRun& run, TrainingResult& result) {
  const auto figure = [&](const std::string& name, double value) {
    result.figures.emplace_back(figure_of(describe(plan) + ": " + name, plan.impl), value);
  };
  const auto& losses = run.loss.back();
  double mean = 0;
  for (const double loss : losses) mean += loss / static_cast<double>(losses.size());
  figure("final loss", mean);
  figure("optimizer bytes per rank", static_cast<double>(run.state_bytes.front()));
}

void add_world(const TrainingJob& job, const ShardedPlan& plan, const ShardedRun& run,
               TrainingResult& result) {
  for (Verdict& verdict : judge_world(job, plan, run))
    result.verdicts.push_back(std::move(verdict));
  add_figures(plan, run, result);
  result.tokens += tokens_of(job, plan);
}

/// DeepSpeed's own curve and parameters against the float64 run that replays its decisions.
void judge_golden(const TrainingJob& job, const ShardedPlan& plan, TrainingResult& result) {
  const std::string suite =
      plan.accumulation == 1 ? "sharded" : "sharded_accum" + std::to_string(plan.accumulation);
  const golden::TrainingGolden golden = golden::load_training(suite, job.the_case.name);
  const training::Recipe recipe = sharded_recipe(plan, plan.ranks * plan.accumulation);
  TrainingSide oracle(job, recipe, {.name = "oracle of DeepSpeed", .dtype = DType::float64});
  const ReplayedRun run =
      replay_run(oracle, recipe, golden.decisions, [](const std::string&) { return false; });
  const Subject subject = golden_side(", " + describe(plan));
  std::vector<Verdict> verdicts =
      judge_curve(job.the_case.config_name, subject, golden.series.at("loss"),
                  golden.series.at("grad_norm"), run);
  for (Verdict& verdict : judge_golden_parameters(golden, run))
    verdicts.push_back(std::move(verdict));
  for (Verdict& verdict : verdicts) {
    verdict.subject = subject;
    result.verdicts.push_back(std::move(verdict));
  }
}

/// The world that a launcher has started: its own size, with and without accumulation. Rank 0
/// judges once the ranks are through; the others check what they alone can.
TrainingResult judge_given_world(const TrainingJob& job, const training::RankEnvironment& env) {
  constexpr int64_t kSteps = 2;
  TrainingResult result;
  std::vector<ShardedPlan> plans;
  for (const std::string& impl : job.impls) {
    plans.push_back(with_impl(plan_of(job, env.world_size, kSteps), impl));
    if (env.world_size * kGoldenAccumulation > job.the_case.B) continue;
    plans.push_back(with_impl(plan_of(job, env.world_size, kSteps, kGoldenAccumulation), impl));
  }
  std::vector<ShardedRun> runs;
  {
    training::World world(env, {.device = job.settings.device,
                                .timeout = rank_timeout(),
                                .alike = sharded_digests(plans.front())});
    try {
      for (const ShardedPlan& plan : plans) runs.push_back(run_rank(world, plan));
      world.finish();
    } catch (const std::exception& error) {
      world.fail(error.what());
      throw;
    }
  }
  for (size_t i = 0; i < plans.size(); ++i) {
    if (env.rank == 0) {
      add_world(job, plans[i], runs[i], result);
      continue;
    }
    for (size_t step = 0; step < runs[i].fingerprints.size(); ++step) {
      const auto& prints = runs[i].fingerprints[step];
      result.verdicts.push_back(training_check(
          sharded_subject(plans[i]),
          step_name(static_cast<int64_t>(step), "rank", std::to_string(env.rank)),
          {"exact", prints[env.rank] == prints[0] ? 0.0 : 1.0, 0, "the parameters of rank 0"}, 1));
    }
  }
  return result;
}

}  // namespace

TrainingResult judge_sharded(const TrainingJob& job) {
  if (const auto env = training::read_rank_environment()) return judge_given_world(job, *env);
  TrainingResult result;
  set_training_threads(job.the_case, job.settings);
  for (const std::string& impl : job.impls)
    for (const ShardedPlan& any : plans_of(job)) {
      const ShardedPlan plan = with_impl(any, impl);
      add_world(job, plan, launch_world(plan, job.settings), result);
    }
  for (const ShardedPlan& plan : golden_plans(job)) judge_golden(job, plan, result);
  return result;
}

}  // namespace dsv32::harness
