#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "harness/training/suite.h"
#include "src/training/collective.h"
#include "src/training/trainer.h"

namespace dsv32::harness {

/// What moves in a sharded run.
enum class ShardedKind {
  all,     // LM, every parameter
  frozen,  // LM + KL sparse, the indexer frozen
  lora,    // dual LoRA: two groups
};

/// One world: how many ranks train what.
struct ShardedPlan {
  std::string case_name;
  std::string impl = "reference";
  int ranks = 2;
  int64_t steps = 2;
  int64_t accumulation = 1;
  ShardedKind kind = ShardedKind::all;
  training::Bug bug = training::Bug::none;
  uint64_t perturbation_seed = 0;  // other than 0: start weights moved by one ulp
  std::string device = "cpu";
  /// For tests of what the others do: this rank dies ("kill"), sleeps ("hang"), stops ("stop") or
  /// throws ("throw") at a step.
  std::string fault;
  int64_t fault_step = 0;

  /// "tiny-shard steps=2 ...": the plan on a command line, and back (Error usage).
  std::vector<std::string> words() const;
  static ShardedPlan from_words(const std::vector<std::string>& words);
};

/// What a world did: rank 0 has all of it, the other ranks have the numbers.
struct ShardedRun {
  std::vector<std::vector<double>> loss;                // [step][rank]
  std::vector<std::vector<std::vector<double>>> norms;  // [step][rank][group], before clipping
  std::vector<std::vector<int64_t>> fingerprints;       // [step][rank], of the parameters after it
  std::vector<int64_t> state_bytes;                     // [rank], of the moments
  std::vector<int64_t> integer_fingerprints;            // [rank], see integer_fingerprint
  std::vector<Trace> decisions;                         // [step], whole batch
  std::vector<training::TensorTable> gradients;         // [step], mean over ranks
  std::vector<training::TensorTable> parameters;        // [step], after it
};

/// What trains on one rank, or on none but one: weights, trainables, model.
struct ShardedPupil {
  ShardedPupil(const ShardedPlan& plan, const std::string& impl, DType dtype = DType::float32);

  SyntheticWeights synthetic;
  std::unique_ptr<WeightSource> start, adapter_start;
  std::unique_ptr<training::Trainables> trainables;
  std::unique_ptr<Implementation> model;
};

/// The unsharded recipe of a plan; on ranks with `micro_batches` = accumulation.
training::Recipe sharded_recipe(const ShardedPlan& plan, int64_t micro_batches);

/// The part of one rank, in step with the others.
ShardedRun run_rank(training::World& world, const ShardedPlan& plan);

/// Three steps on exactly representable integer gradients: the same bits in every world.
int64_t integer_fingerprint(training::World& world, const ShardedPlan& plan);

/// What all ranks must have alike: the case and the recipe, the seed, the program.
std::map<std::string, std::string> sharded_digests(const ShardedPlan& plan);

void write_sharded_run(const std::filesystem::path& path, const ShardedRun& run);
ShardedRun read_sharded_run(const std::filesystem::path& path);

/// Starts a world of own processes and reads what it did. Throws Error (environment) when a rank
/// was lost.
ShardedRun launch_world(const ShardedPlan& plan, const RunSettings& settings);

/// `dsv32-verify sharded-rank`: one rank of such a world.
ExitCode sharded_rank_command(const std::vector<std::string>& words);

/// Seconds that ranks wait for each other: $DSV32_RANK_TIMEOUT, which `launch --timeout` sets;
/// default 60.
double rank_timeout();

/// Every step of a world against the unsharded run in float64 and float32.
[[nodiscard]] std::vector<Verdict> judge_world(const TrainingJob& job, const ShardedPlan& plan,
                                               const ShardedRun& run);
/// "3 ranks", "2 ranks, accumulation 3".
std::string describe(const ShardedPlan& plan);
/// Who a world is in the verdicts: "reference, 3 ranks".
Subject sharded_subject(const ShardedPlan& plan);

}  // namespace dsv32::harness
