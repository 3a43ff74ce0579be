#include "harness/judge/answers.h"

#include <algorithm>
#include <cmath>

#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

double log_sum_exp(const std::vector<double>& values) {
  const double largest = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (const double value : values) sum += std::exp(value - largest);
  return largest + std::log(sum);
}

/// Adds the prediction of `label` by one row of logits to the sums.
void add(const std::vector<double>& logits, int64_t label, AnswerScore& sums) {
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  ++sums.tokens;
  sums.loss += log_sum_exp(logits) - logits[static_cast<size_t>(label)];
  sums.top1 += best == label ? 1 : 0;
}

AnswerScore mean(AnswerScore sums) {
  const auto n = static_cast<double>(std::max<int64_t>(sums.tokens, 1));
  return {.tokens = sums.tokens, .loss = sums.loss / n, .top1 = sums.top1 / n};
}

}  // namespace

double AnswerScore::perplexity() const { return std::exp(loss); }

AnswerScore Answers::all() const {
  AnswerScore sums;
  for (const AnswerScore& one : examples) {
    const auto n = static_cast<double>(one.tokens);
    sums.tokens += one.tokens;
    sums.loss += n * one.loss;
    sums.top1 += n * one.top1;
  }
  return mean(sums);
}

bool are_logits_of(const HostTensor& logits, const Batch& batch) {
  const Shape& shape = logits.shape();
  return shape.size() == 3 && shape[0] == batch.B && shape[1] == batch.S;
}

std::vector<AnswerScore> score_answers(const HostTensor& logits, const Batch& batch) {
  const Shape& shape = logits.shape();
  if (!are_logits_of(logits, batch))
    throw Error(ExitCode::internal, {.where = "answers",
                                     .what = "logits",
                                     .expected = "[" + std::to_string(batch.B) + "," +
                                                 std::to_string(batch.S) + ",vocab]",
                                     .got = dsv32::to_string(shape)});
  std::vector<AnswerScore> scores;
  std::vector<double> row(static_cast<size_t>(shape[2]));
  for (int64_t b = 0; b < batch.B; ++b) {
    AnswerScore sums;
    for (int64_t s = 0; s + 1 < batch.S; ++s) {
      const int64_t label = batch.labels[b * batch.S + s + 1];
      if (label == kIgnoredLabel) continue;
      for (int64_t i = 0; i < shape[2]; ++i)
        row[static_cast<size_t>(i)] = logits.at((b * batch.S + s) * shape[2] + i);
      add(row, label, sums);
    }
    scores.push_back(mean(sums));
  }
  return scores;
}

}  // namespace dsv32::harness
