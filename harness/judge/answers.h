#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/judge/verdict.h"
#include "src/model/batch.h"
#include "src/model/tensor.h"

/// How well the labels of a batch are predicted, with teacher forcing: data beside the checks.
namespace dsv32::harness {

struct AnswerScore {
  int64_t tokens = 0;  // counted labels
  double loss = 0;     // mean cross entropy over them, in nats; 0 where there are none
  double top1 = 0;     // share of them that have the largest logit

  double perplexity() const;  // exp(loss)
};

/// Of one subject of one case.
struct Answers {
  std::string case_name;
  Subject subject;
  std::vector<AnswerScore> examples;  // row by row of the batch

  /// Over all tokens: a long answer counts more than a short one.
  AnswerScore all() const;
};

/// [B,S,vocab] of this batch.
bool are_logits_of(const HostTensor& logits, const Batch& batch);
/// `logits` [B,S,vocab]: those at s predict the label of s + 1. A token whose label equals the
/// largest logit together with another one counts by the lower id, as argmax does.
/// Throws Error (internal) when the shape is not the batch's.
std::vector<AnswerScore> score_answers(const HostTensor& logits, const Batch& batch);

}  // namespace dsv32::harness
