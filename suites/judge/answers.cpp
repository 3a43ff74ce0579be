// How well the labels of a batch are predicted.
#include "harness/judge/answers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "src/model/errors.h"

namespace dsv32::suites {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(SelfAnswers, AnAnswerIsScoredByItsCountedLabels) {
  const Batch batch{
      .B = 2, .S = 3, .labels = {kIgnoredLabel, 1, 0, kIgnoredLabel, kIgnoredLabel, 2}};
  // The logits at s predict s + 1; those of the last token nothing.
  const std::vector<double> values = {0, 1, 0, 0, 2, 0, 9,    9,    9,
                                      5, 0, 0, 1, 1, 1, kNaN, kNaN, kNaN};
  const HostTensor logits = HostTensor::from_doubles(DType::float64, {2, 3, 3}, values);
  const harness::Answers answers{.examples = harness::score_answers(logits, batch)};
  const double e = std::exp(1.0), first = std::log(e + 2) - 1, second = std::log(e * e + 2);
  ASSERT_EQ(answers.examples.size(), 2U);
  EXPECT_EQ(answers.examples[0].tokens, 2);
  EXPECT_DOUBLE_EQ(answers.examples[0].loss, (first + second) / 2);
  EXPECT_EQ(answers.examples[0].top1, 0.5);
  EXPECT_EQ(answers.examples[1].tokens, 1);
  EXPECT_DOUBLE_EQ(answers.examples[1].perplexity(), 3);
  EXPECT_EQ(answers.examples[1].top1, 0) << "of equal logits the lowest id is chosen";
  EXPECT_DOUBLE_EQ(answers.all().loss, (first + second + std::log(3.0)) / 3);
  EXPECT_EQ(answers.all().tokens, 3);
  EXPECT_THROW((void)harness::score_answers(logits, {.B = 3, .S = 2}), Error);
}

}  // namespace
}  // namespace dsv32::suites
