#pragma once

#include <cstdint>
#include <vector>

#include "src/model/batch.h"
#include "src/model/case.h"
#include "src/model/tensor.h"

/// Greedy decoding: each row goes on with the token of the largest logit until it emits the end of
/// the sequence. docs/formats.md 14.
namespace dsv32 {

/// A batch of prompts and what was emitted after them, laid out as one pass over all of it: what a
/// decoding looks back on. The last token is emitted and never read.
class History {
 public:
  /// Throws Error (usage) unless every prompt ends with a token that is no padding.
  History(const Batch& prompt, const Decoding& decoding);

  /// The next token of every row, [B]; of a finished row it does not count.
  void emit(const std::vector<int64_t>& tokens);
  /// Tokens that were emitted so far, finished rows included.
  int64_t steps() const { return steps_; }
  /// Of row `b`: steps whose token counts, the one of eos included.
  int64_t counted(int64_t b) const { return counted_[static_cast<size_t>(b)]; }
  bool finished(int64_t b) const { return finished_[static_cast<size_t>(b)]; }

  /// [B,S+N-1], in one pass: the prompts, then what was emitted. Places behind the end of a row
  /// and those not emitted yet are masked, so that no query of theirs is judged.
  const Batch& batch() const { return batch_; }
  /// The same as a model reads it that decodes: in chunks, the prompt and then one token each.
  /// Finished rows go along: what is fed to them counts as any other token.
  const Batch& in_steps() const { return steps_batch_; }
  /// The position of the query whose logits give the token of step `i`.
  int64_t query(int64_t step) const { return prompt_ - 1 + step; }
  /// What was emitted, int64 [B,N]: finished rows are filled with eos, steps to come with 0.
  HostTensor tokens() const;

 private:
  int64_t prompt_;  // S of the prompts
  Decoding decoding_;
  Batch batch_, steps_batch_;
  int64_t steps_ = 0;
  std::vector<int64_t> emitted_;  // [B,N]
  std::vector<int64_t> counted_;
  std::vector<bool> finished_;
};

}  // namespace dsv32
