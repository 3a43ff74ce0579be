#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "golden/reader/golden.h"
#include "harness/judge/judge.h"
#include "harness/judge/verdict.h"
#include "src/io/scratch.h"
#include "src/model/implementation.h"

namespace dsv32::harness {

/// How a run goes about its work, not what it computes.
struct RunSettings {
  std::string device = "cpu";
  int threads = 0;  // 0: one for a tiny case (more only wait for each other), else every core
  std::function<void(const std::string&)> progress = {};
  std::function<bool()> interrupted = {};  // polled between layers
  /// Taps that the runs keep which do not say it themselves; empty function: all.
  std::function<bool(const std::string&)> wanted = {};
};

/// One trace to be judged, and what it claims to be.
struct JudgedTrace {
  Subject subject;
  std::string impl = "";  // of ours, which may lack taps that its kernels never hold
  DType dtype = DType::float32;
  Dialect dialect = {};          // what it claims to compute
  const Trace* trace = nullptr;  // for a sketched golden: its decisions and scalars
  const Trace* fed = nullptr;    // what stages read; nullptr: trace
  const golden::Golden* golden = nullptr;
  const Batch* batch = nullptr;  // where only some rows are there: the others count as padding
  const RankPieces* pieces = nullptr;  // as Evidence
  const RankSums* sums = nullptr;      // as Evidence
  bool ops_only = false;               // as Evidence
  bool is_file = false;
  std::optional<Emitted> emitted = {};  // as Evidence
  /// Of an implementation of ours that a streamed run makes: bugs planted in its layers.
  std::map<int64_t, Dialect> layer_dialects = {};
  std::map<int64_t, Dialect> backward_dialects = {};  // the same in their backward pass alone
  bool against_reference = true;  // false: it is the reference itself, judged by the cap alone
};

/// The dtype that it was asked for in: fp8 stores bfloat16.
DType mode_of(const JudgedTrace& judged);

/// End-to-end traces under one set of decisions, kept between subjects that share them.
struct ForcedTraces {
  Dialect dialect = {};
  Trace oracle;
  Trace probe;
  std::optional<Trace> reference = {};  // of reference_dtype, with gradients where the case has any
  std::optional<Trace> twin = {};       // of the reference
  DType reference_dtype = DType::float32;
};

/// A pass that a run made, and what it took.
struct Pass {
  std::string what;
  int64_t layers = 0;  // forward and backward counted apart
  double seconds = 0;
};

/// One case with its batch and weights: makes the traces that a judgement needs, and judges.
class CaseRun {
 public:
  /// `weights` must outlive the run.
  CaseRun(Case c, Batch batch, const WeightSource& weights, bool backward,
          RunSettings settings = {}, Objective objective = {});
  /// The synthetic batch and weights of the case.
  explicit CaseRun(const Case& c, bool backward = true, RunSettings settings = {},
                   Objective objective = {});

  /// Under the warm-up its config says dense attention, which is what that stage computes.
  const Case& the_case() const { return case_; }
  const Batch& batch() const { return batch_; }
  /// The batch, with the rows that are looked at of this trace.
  const Batch& batch_of(const JudgedTrace& judged) const {
    return judged.batch != nullptr ? *judged.batch : batch_;
  }
  bool backward() const { return backward_; }
  const Objective& objective() const { return objective_; }
  const WeightSource& weights() const { return weights_; }
  const std::vector<Pass>& passes() const { return passes_; }
  /// e_score_correction_bias of an expert layer.
  HostTensor router_bias(int64_t layer) const;

  /// What an implementation gives under these options; objective, progress and interruption are
  /// added.
  Trace run(RunOptions options, const std::string& what,
            const std::string& impl = "reference") const;
  /// The other end of what a correct run of the reference may give: sums in sequential order, in 16
  /// bits also the other style of rounding. float64 has none.
  std::optional<Trace> twin(RunOptions options, const std::string& what) const;
  /// RunOptions::measure: only the distance to the oracle is kept of each tap.
  decltype(RunOptions::measure) measured(const Trace& oracle, const Trace* in_force) const;
  /// The decisions of the subject replayed; where it has none, those of the float64 run serve
  /// everybody.
  ForcedTraces forced_traces(const Dialect& dialect, const Trace* decisions) const;

  /// Staged verdicts: every op on the subject's own inputs, under its own decisions. Empty for a
  /// sketch.
  [[nodiscard]] std::vector<Verdict> judge_staged(const JudgedTrace& judged) const;
  /// All verdicts, the `staged` ones as they were given: the others are forced, end to end with the
  /// subject's decisions replayed. `shared`: traces of an earlier subject under the same decisions
  /// and an equal dialect are used again; nullptr: none.
  [[nodiscard]] std::vector<Verdict> judge_forced(const JudgedTrace& judged,
                                                  const ForcedTraces* shared = nullptr,
                                                  std::vector<Verdict> staged = {}) const;
  /// All verdicts, staged ones included.
  [[nodiscard]] std::vector<Verdict> judge_subject(const JudgedTrace& judged,
                                                   const ForcedTraces* shared = nullptr) const;

 private:
  CaseRun(Case c, Batch batch, std::unique_ptr<const WeightSource> own, bool backward,
          RunSettings settings, Objective objective);
  std::map<std::string, HostTensor> router_biases() const;
  Evidence evidence_of(const JudgedTrace& judged) const;

  Case case_;
  Batch batch_;
  std::unique_ptr<const WeightSource> own_weights_;  // where nobody brought others
  const WeightSource& weights_;
  std::unique_ptr<Implementation> model_;  // the reference
  bool backward_;
  RunSettings settings_;
  Objective objective_;
  mutable std::vector<Pass> passes_;  // what was spent, not what was found
  mutable io::Scratch waiting_;       // large tensors of the oracle
};

/// Both dialects are the same function of this config. Where 16-bit runs round does not matter.
bool same_function(const ModelConfig& config, Dialect a, Dialect b);

/// The trace holds decisions that a run can replay.
bool has_decisions(const Trace& trace);

}  // namespace dsv32::harness
