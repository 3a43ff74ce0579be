#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "src/model/case.h"
#include "src/model/tensor.h"

namespace dsv32::harness {

/// One training suite on one of its cases.
struct TrainingTask {
  std::string suite;
  Case the_case;
};

/// One job as the command line describes it.
struct Job {
  std::vector<Case> cases;  // of the suites forward and backward
  std::vector<std::string> suites = {"forward", "backward"};
  std::vector<TrainingTask> training = {};
  std::string filter;  // -k: substring of check_path (verdict.h); empty: all
  std::vector<std::filesystem::path> candidates;
  std::string dialect = "spec-1";              // what the candidate declares
  std::optional<std::filesystem::path> noise;  // a clean run of the candidate's engine
  bool accept_weak = false;                    // an undecided check passes
  bool all = false;             // golden and own models beside a candidate of a large case too
  std::filesystem::path cache;  // of verdicts about them; empty: none
  std::vector<DType> dtypes = {DType::float32, DType::bfloat16};
  std::vector<std::string> impls = {"reference", "optimized"};  // judged side by side
  std::string device = "cpu";
  std::string weights = "synthetic";  // or synthetic:SEED, or a directory
  std::optional<std::filesystem::path> batch_file;
  std::optional<uint64_t> seed;
  /// Words of --layers; "" without: then a case too large to be held whole is streamed.
  std::string layers;
  /// A streamed run leaves its journal and its heartbeat here; empty: nowhere.
  std::filesystem::path folder;
  bool resume = false;  // go on from the journal
  std::string command;  // what a journal must have been made with
  std::function<void(const std::string&)> progress = {};
  std::function<bool()> interrupted = {};  // polled between stages
};

}  // namespace dsv32::harness
