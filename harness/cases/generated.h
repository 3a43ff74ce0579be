#pragma once

#include <string>
#include <vector>

#include "harness/cases/case_run.h"

/// Greedy decodings: our models make them, and each is judged on the history that it made itself.
/// docs/formats.md 14.
namespace dsv32::harness {

/// One decoding to be judged.
struct JudgedDecoding {
  Subject subject;
  DType dtype = DType::float32;
  Dialect dialect = {};  // what it claims to compute
  /// gen.tokens, gen.logits, and decisions over the whole history where it has them.
  const Trace* trace = nullptr;
  bool against_reference = true;  // false: it is the reference itself
};

/// What was found about a decoding.
struct [[nodiscard]] DecodingVerdicts {
  std::vector<Verdict> verdicts;
  std::vector<std::string> causes;  // of a failure, in words; empty where none fits
};

/// The prompts of one case.
class GenerateRun {
 public:
  /// `weights` must outlive the run. Throws Error (usage) where nothing can be decoded after these
  /// prompts.
  GenerateRun(Case c, Batch prompt, const WeightSource& weights, RunSettings settings = {});

  /// What an implementation of ours decodes: a trace of mode `generate`.
  Trace decode(const std::string& impl, RunOptions options) const;
  /// The oracle and all that errors are measured with see the prompt and the emitted tokens in one
  /// pass, under the decisions that the trace holds; gen.logits and gen.tokens are judged step by
  /// step. A failure is looked into.
  DecodingVerdicts judge(const JudgedDecoding& judged) const;

 private:
  History history_of(const HostTensor& tokens) const;
  CaseRun run_of(const History& history, bool in_steps) const;
  std::vector<Verdict> verdicts_of(const CaseRun& run, const History& history,
                                   const JudgedDecoding& judged,
                                   const Batch* looked_at = nullptr) const;
  bool explains(const KnownBug& bug, const History& history, const JudgedDecoding& judged) const;
  bool is_right_in_prompt(const History& history, const JudgedDecoding& judged) const;
  std::vector<std::string> causes_of(const JudgedDecoding& judged,
                                     const std::vector<Verdict>& verdicts) const;

  Case case_;
  Batch prompt_;
  const WeightSource& weights_;
  RunSettings settings_;
};

}  // namespace dsv32::harness
