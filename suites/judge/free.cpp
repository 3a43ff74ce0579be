// Traces without their decisions: which rows a near-tie may have moved, and what is said of the
// others.

#include "harness/judge/decisions/free.h"

#include <gtest/gtest.h>

#include <limits>

#include "harness/judge/decisions/exposure.h"
#include "suites/kit/world.h"

namespace dsv32::suites {
namespace {

using harness::Exposure;
using harness::judge_free;
using harness::Margins;
using harness::Mode;
using harness::Trust;
using harness::Verdict;

constexpr double kNever = std::numeric_limits<double>::infinity();

/// Margins of one tap: no decision may turn but that of row s of batch row b.
std::map<std::string, Margins> turning(const World& world, const std::string& tap, int64_t b,
                                       int64_t s) {
  Margins margins(world.batch.B * world.batch.S, kNever);
  margins[b * world.batch.S + s] = 0.5;
  return {{tap, margins}};
}

Exposure exposure(const World& world, const std::map<std::string, Margins>& margins) {
  return {world.c.config, world.batch, margins};
}

int64_t exposed(const Exposure& e, const std::string& tap) {
  return e.share(*parse_tap(tap)).exposed;
}

/// The judged logits of one row, times a factor.
void scale_row(World& world, int64_t b, int64_t s, double factor) {
  std::vector<double> values = world.values("logits");
  const int64_t vocab = world.c.config.vocab_size;
  for (int64_t i = 0; i < vocab; ++i) values[(b * world.batch.S + s) * vocab + i] *= factor;
  world.corrupt("logits", values);
}

Verdict judge(const World& world, const Exposure& e) {
  return judge_free(world.comparison("logits", Mode::free), e);
}

TEST(SelfExposure, NothingIsExposedWithoutANearTie) {
  const World world(1);
  const Exposure none = exposure(world, {});
  EXPECT_FALSE(none.any());
  EXPECT_FALSE(none.touches(*parse_tap("loss.lm")));
  EXPECT_EQ(exposed(none, "logits"), 0);
}

TEST(SelfExposure, AMarginBeyondTheBandDoesNotTurn) {
  const World world(1);
  auto margins = turning(world, "layers.0.topk", 0, 20);
  for (double& margin : margins.begin()->second) margin *= 2.5;
  EXPECT_FALSE(exposure(world, margins).any());
}

TEST(SelfExposure, ASelectionMovesItsOwnRowAndTheNextLayerOfAllThatSeeIt) {
  const World world(1);
  const Exposure e = exposure(world, turning(world, "layers.0.topk", 0, 20));
  const int64_t later = world.batch.S - 20;  // queries of row 0 from 20 on
  EXPECT_EQ(exposed(e, "layers.0.ix.scores"), 0);
  EXPECT_EQ(exposed(e, "layers.0.attn.ctx"), 1);
  EXPECT_EQ(exposed(e, "layers.0.hidden"), 1);
  EXPECT_EQ(exposed(e, "layers.1.q_latent"), 1);
  EXPECT_EQ(exposed(e, "layers.1.ix.scores"), later);
  EXPECT_EQ(exposed(e, "layers.1.attn.ctx"), later);
  EXPECT_EQ(exposed(e, "logits"), later);
  EXPECT_TRUE(e.touches(*parse_tap("loss.lm")));
  EXPECT_TRUE(e.touches(*parse_tap("grad.lm_head.weight")));
}

TEST(SelfExposure, AnExpertChoiceMovesWhatFollowsTheRouter) {
  const World world(1);
  const Exposure e = exposure(world, turning(world, "layers.1.router.experts", 0, 20));
  EXPECT_EQ(exposed(e, "layers.1.router.logits"), 0);
  EXPECT_EQ(exposed(e, "layers.1.moe.routed"), 1);
  EXPECT_EQ(exposed(e, "layers.1.moe.shared"), 0);
  EXPECT_EQ(exposed(e, "logits"), 1);
}

TEST(SelfFree, WithinRoundingPassesWhateverMayTurn) {
  const World world(2);
  EXPECT_TRUE(passes(judge(world, exposure(world, turning(world, "layers.0.topk", 0, 20)))));
  EXPECT_TRUE(passes(judge(world, exposure(world, {}))));
}

TEST(SelfFree, ARowThatNoTieCanHaveMovedFails) {
  World world(3);
  scale_row(world, 1, 20, 1.001);  // the near-tie is in row 0 of the batch
  EXPECT_TRUE(fails(judge(world, exposure(world, turning(world, "layers.0.topk", 0, 20)))));
  EXPECT_TRUE(fails(judge(world, exposure(world, {}))));
}

TEST(SelfFree, ARowThatATieMayHaveMovedIsUndecided) {
  World world(4);
  scale_row(world, 0, 25, 1.02);
  const Verdict verdict = judge(world, exposure(world, turning(world, "layers.0.topk", 0, 20)));
  EXPECT_EQ(verdict.trust, Trust::undecided);
  EXPECT_NE(verdict.note.find("13 of 61 rows follow a near-tie"), std::string::npos)
      << verdict.note;
  EXPECT_NE(verdict.note.find("add topk and router.experts"), std::string::npos);
}

TEST(SelfFree, ALossIsUndecidedOnlyWhereSomethingMayTurn) {
  World world(6);
  world.corrupt("loss.lm", {world.values("loss.lm").front() * 1.01});
  const auto judged = [&](const Exposure& e) {
    return judge_free(world.comparison("loss.lm", Mode::free), e).trust;
  };
  EXPECT_EQ(judged(exposure(world, {})), Trust::fail);
  EXPECT_EQ(judged(exposure(world, turning(world, "layers.0.topk", 0, 20))), Trust::undecided);
}

TEST(SelfFree, WhatNoFlipCanDoFails) {
  World world(5);
  const Exposure e = exposure(world, turning(world, "layers.0.topk", 0, 20));
  scale_row(world, 0, 25, 3);
  EXPECT_TRUE(fails(judge(world, e)));
  scale_row(world, 0, 25, std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(fails(judge(world, e)));
}

}  // namespace
}  // namespace dsv32::suites
