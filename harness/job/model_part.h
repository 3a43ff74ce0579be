#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "golden/reader/golden.h"
#include "harness/cases/candidate.h"
#include "harness/cases/case_run.h"
#include "harness/job/findings.h"
#include "harness/job/job.h"
#include "harness/job/journal.h"
#include "harness/job/witnesses.h"
#include "harness/report/report.h"

namespace dsv32::harness {

/// The model's part of one case of a job: its golden, our implementations in each dtype, the
/// candidates.
class CaseJob {
 public:
  CaseJob(const Job& job, Case c, const Objective& objective, Report& report);

  void run_golden_and_own();
  /// In place of it: what an earlier run of this program found about them, if any.
  void recall_golden_and_own();
  /// How well the float64 model predicts the labels of a batch of the user's own.
  void score_oracle();
  /// Our implementations over the layers that were asked for, or all of them, one after the other.
  void run_layers();
  void run_candidate(const Candidate& candidate);
  /// Who is wrong, once everybody was judged.
  void settle();

 private:
  std::string witness_key() const;
  void keep_witnesses();
  LayerRunOptions layer_options();
  void list_what_no_layer_shows(const LayerRunOptions& options);
  static Trace held_by(const Candidate& candidate, const io::CandidateNotes& notes);
  JudgedTrace judged_file(const Candidate& candidate, const Trace& held) const;
  void list_untested(const Candidate& candidate, const io::CandidateNotes& notes);
  void widen(const Candidate& candidate, std::vector<Verdict>& verdicts);
  std::optional<golden::Golden> load_golden();
  void judge_golden(const golden::Golden& golden, const ForcedTraces* shared);
  JudgedTrace own_trace(const std::string& impl, DType dtype) const;
  std::string why_not(const std::string& impl, DType dtype) const;
  std::vector<JudgedTrace> own_traces();
  std::vector<Verdict> staged_verdicts(JudgedTrace own);
  bool scores_answers() const;
  void score(const Subject& subject, const Trace& trace);
  Trace forced_run(const JudgedTrace& own, const Trace& decisions) const;
  void judge_own(JudgedTrace own, std::vector<Verdict> staged, const Trace& decisions,
                 const ForcedTraces& shared);

  const Job& job_;
  Report& report_;
  std::unique_ptr<const WeightSource> weights_;
  Heartbeat heartbeat_;
  CaseRun run_;
  Findings findings_;
  WitnessStore store_;
};

}  // namespace dsv32::harness
