#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "harness/cases/case_run.h"
#include "harness/judge/verdict.h"
#include "src/training/bugs.h"

/// The training suites: each judges our implementations against its golden and against the float64
/// run.
namespace dsv32::harness {

/// One training suite on one case. The implementations are judged side by side: what does not
/// depend on them (the float64 run, the golden) is made once.
struct TrainingJob {
  Case the_case;
  std::vector<std::string> impls = {"reference"};
  RunSettings settings = {};
  training::Bug bug = training::Bug::none;  // planted in the judged sides, by tests only
  Dialect dialect = {};            // of the judged sides; a planted model bug, by tests only
  uint64_t perturbation_seed = 0;  // other than 0: start weights moved by one ulp (clean runs)
};

/// What a suite found, and what it measured on the way ("final loss", "recall after", ...).
struct [[nodiscard]] TrainingResult {
  std::vector<Verdict> verdicts;
  std::vector<std::pair<std::string, double>> figures;
  double tokens = 0;  // trained on by the judged sides, for tokens per second

  TrainingResult& operator+=(TrainingResult other);
};

/// Who an implementation is in the verdicts: "reference float32", and what else sets it apart.
Subject judged_side(const std::string& impl, const std::string& note = "");
/// Who a golden is: "golden", and what else sets it apart.
Subject golden_side(const std::string& note = "");
/// A figure of the reference has its plain name, that of another implementation ends in ", NAME".
std::string figure_of(const std::string& name, const std::string& impl);

TrainingResult judge_loss_descent(const TrainingJob& job);
TrainingResult judge_sft_frozen_indexer(const TrainingJob& job);
TrainingResult judge_indexer_kl(const TrainingJob& job);
TrainingResult judge_dual_lora(const TrainingJob& job);
TrainingResult judge_sharded(const TrainingJob& job);
/// No training: greedy decoding of our models, and the golden of real transformers.
TrainingResult judge_generate(const TrainingJob& job);

/// A golden of golden/reader/training_golden.h.
struct TrainingGoldenName {
  std::string suite, case_name;
};

/// Name, cases and function of every training suite, in running order.
struct TrainingSuite {
  std::string name;
  std::string about;  // a line for `list suites`
  std::vector<std::string> cases;
  std::vector<TrainingGoldenName> goldens;  // without one of its case's a suite is `missing`
  TrainingResult (*judge)(const TrainingJob& job);
};
/// Every training suite of this version, in running order.
const std::vector<TrainingSuite>& training_suites();
/// A training suite has this golden of the case, so that its absence is a `missing` check.
bool lists_golden(const std::string& golden, const std::string& case_name);

}  // namespace dsv32::harness
