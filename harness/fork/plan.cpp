#include <algorithm>

#include "harness/fork/fork.h"
#include "src/io/trace/generated.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

namespace fs = std::filesystem;

/// Sizes and paths that differ, in seconds: real expert choice, negative router scores, YaRN as
/// released, no two sizes alike, the cache.
const char* const kDefaultCases[] = {"tiny-wide", "tiny-bias", "tiny-yarn-released", "tiny-odd",
                                     "tiny-chunk"};
/// Suites whose whole training a fork can run alone; on tiny-wide, where goldens are.
const char* const kTrainings[] = {"loss_descent", "sft_frozen_indexer", "indexer_kl_warmup",
                                  "indexer_kl_sparse"};
constexpr char kTrainingCase[] = "tiny-wide";
constexpr char kLargeCase[] = "small";

// Far above what correct code takes on two busy cores.
constexpr double kTinySeconds = 300, kLargeSeconds = 1800;
constexpr double kTinyGib = 8, kLargeGib = 24;

bool contains(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

/// Why the full set leaves a case of the tiny config out; "" for one that it holds.
std::string reason_against(const Case& c, const ForkPlan& plan) {
  if (c.fp8)
    return "real transformers refuses FP8 blocks that do not divide a weight; --case " + c.name +
           " asks for it";
  if (c.name == "tiny-yarn" && plan.dialect != "hf")
    return "real transformers multiplies by an amplitude there; --dialect hf asks for it";
  return "";
}

/// What the full set is taken from, beside `small`.
bool is_tiny(const Case& c) { return c.config_name == "tiny" && !c.training && c.golden != "none"; }

std::vector<std::string> default_cases() {
  std::vector<std::string> names;
  for (const Case& c : io::cases())
    if (std::find(std::begin(kDefaultCases), std::end(kDefaultCases), c.name) !=
        std::end(kDefaultCases))
      names.push_back(c.name);
  return names;
}

std::vector<std::string> chosen_cases(const ForkPlan& plan) {
  if (!plan.cases.empty()) return plan.cases;
  std::vector<std::string> names = default_cases();
  if (!plan.full_set) return names;
  for (const Case& c : io::cases()) {
    const bool wanted = is_tiny(c) && reason_against(c, plan).empty();
    if (wanted && !contains(names, c.name)) names.push_back(c.name);
  }
  names.push_back(kLargeCase);
  return names;
}

/// One place for all cases of the same weights.
fs::path checkpoint_of(const Case& c, const fs::path& checkpoints) {
  for (const Case& first : io::cases()) {
    const bool same = first.seed == c.seed && first.bias_offset == c.bias_offset &&
                      first.config_name == c.config_name &&
                      first.overrides_json == c.overrides_json && first.edits == c.edits &&
                      first.config_style == c.config_style;
    if (same) return checkpoints / first.name;
  }
  return checkpoints / c.name;
}

class Planner {
 public:
  Planner(const ForkPlan& plan, fs::path folder, fs::path checkpoints)
      : plan_(plan), folder_(std::move(folder)), checkpoints_(std::move(checkpoints)) {}

  void add(const Case& c, const std::string& mode, const std::string& suite = "") {
    const bool large = c.config_name != "tiny";
    const std::string file = c.name + "." + (suite.empty() ? mode : suite) + ".safetensors";
    if (!asked_for(c, file)) return;
    jobs_.push_back({.case_name = c.name,
                     .checkpoint = checkpoint_of(c, checkpoints_),
                     .mode = mode,
                     .suite = suite,
                     .out = folder_ / "traces" / file,
                     .sketch = large && mode == "forward",  // a decoding needs whole taps
                     .seconds = plan_.seconds.value_or(large ? kLargeSeconds : kTinySeconds),
                     .gib = plan_.gib.value_or(large ? kLargeGib : kTinyGib)});
  }

  std::vector<io::DumpJob> take() { return std::move(jobs_); }

 private:
  /// A filter with a whole path, as a `repro` line has it, names its case and its file.
  bool asked_for(const Case& c, const std::string& file) const {
    const std::string& filter = plan_.filter;
    if (filter.find("/candidate ") == std::string::npos) return true;
    return filter.starts_with(c.name + "/") &&
           (filter + "/").find("/candidate " + file + "/") != std::string::npos;
  }

  const ForkPlan& plan_;
  fs::path folder_, checkpoints_;
  std::vector<io::DumpJob> jobs_;
};

}  // namespace

std::vector<io::DumpJob> plan_dumps(const ForkPlan& plan, const fs::path& folder,
                                    const fs::path& checkpoints) {
  Planner planner(plan, folder, checkpoints);
  for (const std::string& name : chosen_cases(plan)) {
    const Case& c = io::find_case(name);
    planner.add(c, "forward");
    if (c.chunks.empty() && c.config_name == "tiny") planner.add(c, "backward");
  }
  if (plan.full_set && plan.cases.empty()) {
    const Case& c = io::find_case(kTrainingCase);
    for (const char* mode : {"kl-warmup", "kl-sparse"}) planner.add(c, mode);
    for (const char* suite : kTrainings) planner.add(c, "train", suite);
    for (const Case& decoded : io::cases())
      if (decoded.decoding.eos) planner.add(decoded, io::kGenerate);
  }
  return planner.take();
}

std::vector<std::string> left_out(const ForkPlan& plan) {
  std::vector<std::string> lines;
  if (!plan.full_set || !plan.cases.empty()) return lines;
  for (const Case& c : io::cases()) {
    const std::string reason = is_tiny(c) ? reason_against(c, plan) : "";
    if (!reason.empty()) lines.push_back(c.name + ": " + reason);
  }
  return lines;
}

void make_checkpoints(const std::vector<io::DumpJob>& jobs,
                      const std::function<void(const std::string&)>& progress) {
  std::vector<std::string> made;
  for (const io::DumpJob& job : jobs) {
    if (contains(made, job.checkpoint.string())) continue;
    made.push_back(job.checkpoint.string());
    progress("weights of " + job.case_name);
    io::make_checkpoint(io::find_case(job.case_name), job.checkpoint, {});
  }
}

}  // namespace dsv32::harness
