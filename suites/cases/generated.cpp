// Greedy decoding: clean loops pass, and each fault of a loop is caught, and named where it can be.

#include "harness/cases/generated.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "harness/cases/implementations.h"
#include "src/io/io.h"

namespace dsv32::suites {
namespace {

using harness::DecodingVerdicts;
using harness::GenerateRun;
using harness::JudgedDecoding;
using harness::Trust;
using harness::Verdict;

/// tiny-wide, decoded as its golden is, or with another end.
class Loop {
 public:
  explicit Loop(std::optional<Decoding> decoding = {})
      : case_(io::find_case("tiny-wide")), weights_(case_) {
    if (decoding) case_.decoding = *decoding;
  }
  const Case& the_case() const { return case_; }
  GenerateRun run() const { return {case_, make_batch(case_), weights_}; }
  Trace decode(const std::string& bug = "", DType dtype = DType::float32,
               const std::string& impl = "reference") const {
    RunOptions options{.dtype = dtype};
    if (!bug.empty()) options.dialect = find_dialect(bug);
    return run().decode(impl, options);
  }
  DecodingVerdicts judge(const Trace& trace, JudgedDecoding judged = {}) const {
    judged.subject.label = "candidate";
    judged.trace = &trace;
    return run().judge(judged);
  }

 private:
  Case case_;
  SyntheticWeights weights_;
};

const Loop& loop() {
  static const Loop loop;
  return loop;
}

const Trace& clean() {
  static const Trace trace = loop().decode();
  return trace;
}

const Verdict* verdict_of(const DecodingVerdicts& found, const std::string& tap) {
  const auto at = std::find_if(found.verdicts.begin(), found.verdicts.end(),
                               [&](const Verdict& v) { return v.tap == tap; });
  return at == found.verdicts.end() ? nullptr : &*at;
}

std::vector<std::string> failing(const DecodingVerdicts& found) {
  std::vector<std::string> taps;
  for (const Verdict& v : found.verdicts)
    if (v.trust == Trust::fail) taps.push_back(v.tap);
  return taps;
}

std::string told(const DecodingVerdicts& found) {
  std::string text;
  for (const Verdict& v : found.verdicts)
    if (v.trust != Trust::pass)
      text += v.tap + " " + std::string(to_string(v.trust)) + ": " + v.note + "\n";
  for (const std::string& cause : found.causes) text += "cause " + cause + "\n";
  return text;
}

Trace with_tokens(const Trace& trace, const std::vector<std::pair<int64_t, int64_t>>& changes) {
  const HostTensor& old = *trace.find("gen.tokens");
  std::vector<double> values = old.to_doubles();
  for (const auto& [place, token] : changes) values[place] = static_cast<double>(token);
  Trace out = trace;
  out.put("gen.tokens", HostTensor::from_doubles(DType::int64, old.shape(), values));
  return out;
}

TEST(Decoding, RowZeroStopsAndRowOneGoesOn) {
  const auto tokens = clean().find("gen.tokens")->data<int64_t>();
  const int64_t steps = loop().the_case().decoding.steps, eos = *loop().the_case().decoding.eos;
  constexpr int64_t kStop = 9;
  const auto row0 = tokens.first(steps), row1 = tokens.last(steps);
  EXPECT_EQ(std::find(row0.begin(), row0.end(), eos) - row0.begin(), kStop);
  EXPECT_EQ(std::count(row0.begin(), row0.end(), eos), steps - kStop);
  EXPECT_EQ(std::count(row1.begin(), row1.end(), eos), 0);
}

TEST(Decoding, CleanLoopsPass) {
  for (const char* impl : {"reference", "optimized"})
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      JudgedDecoding judged{.dtype = dtype};
      if (harness::rounds_every_op(impl) && is_narrow(dtype))
        judged.dialect.rounding = RoundingStyle::transformers;
      const DecodingVerdicts found = loop().judge(loop().decode("", dtype, impl), judged);
      EXPECT_EQ(told(found), "") << impl << " " << to_string(dtype);
      ASSERT_NE(verdict_of(found, "gen.tokens"), nullptr);
      EXPECT_EQ(verdict_of(found, "gen.tokens")->checked, 10 + 24);
      EXPECT_NE(verdict_of(found, "gen.logits"), nullptr);
      EXPECT_NE(verdict_of(found, "layers.1.topk"), nullptr);
    }
}

TEST(Decoding, ADecodingIsThePassOverItsHistory) {
  const Loop all(Decoding{.steps = 5});
  const Trace trace = all.decode();
  EXPECT_EQ(trace.find("layers.0.topk")->shape()[1], all.the_case().S + 4);
  EXPECT_EQ(told(all.judge(trace)), "");
}

TEST(Decoding, TokensAloneAreJudgedAndNotGreen) {
  Trace trace;
  trace.put("gen.tokens", *clean().find("gen.tokens"));
  const DecodingVerdicts found = loop().judge(trace);
  EXPECT_EQ(verdict_of(found, "gen.tokens")->trust, Trust::pass) << told(found);
  EXPECT_EQ(verdict_of(found, "evidence")->trust, Trust::vacuous) << told(found);
}

TEST(Decoding, WithoutDecisionsItPasses) {
  Trace trace;
  for (const char* tap : {"gen.tokens", "gen.logits"}) trace.put(tap, *clean().find(tap));
  EXPECT_EQ(told(loop().judge(trace)), "");
}

TEST(Decoding, NoTokensIsMissing) {
  EXPECT_EQ(loop().judge(Trace()).verdicts.front().trust, Trust::missing);
}

struct Planted {
  std::string bug, first;
  bool named = true;
};

TEST(DecodingFaults, EachIsCaughtAndNamed) {
  const std::vector<Planted> all = {{"position-after-prompt", "layers.0.topk"},
                                    {"positions-per-chunk", "layers.0.topk"},
                                    {"cache-other-row", "layers.0.topk"},
                                    {"padding-mask-missing", "layers.0.topk"},
                                    {"k-of-queries", "layers.0.topk", false},
                                    {"index-cache-forgotten", "layers.0.topk", false}};
  for (const auto& [bug, first, named] : all) {
    const DecodingVerdicts found = loop().judge(loop().decode(bug));
    const std::vector<std::string> taps = failing(found);
    ASSERT_FALSE(taps.empty()) << bug;
    EXPECT_EQ(taps.front(), first) << bug << "\n" << told(found);
    ASSERT_EQ(found.causes.empty(), false) << bug << "\n" << told(found);
    if (named) {
      EXPECT_TRUE(found.causes.front().starts_with("known bug " + bug + ":")) << bug << "\n"
                                                                              << told(found);
    }
  }
}

TEST(DecodingFaults, EosIgnored) {
  const Decoding& right = loop().the_case().decoding;
  const DecodingVerdicts found = loop().judge(Loop(Decoding{.steps = right.steps}).decode());
  EXPECT_EQ(failing(found), std::vector<std::string>{"gen.tokens"});
  ASSERT_EQ(found.causes.size(), 1U);
  EXPECT_TRUE(found.causes.front().starts_with("eos ignored: row 0 emitted eos 77 at step 9"))
      << found.causes.front();
}

TEST(DecodingFaults, AnotherTokenThanTheBest) {
  const Trace trace = with_tokens(clean(), {{3, 5}});
  EXPECT_EQ(failing(loop().judge(trace)).back(), "gen.tokens");
  Trace alone;  // judged by the oracle's margin, and what follows on the changed history
  alone.put("gen.tokens", *trace.find("gen.tokens"));
  const DecodingVerdicts found = loop().judge(alone);
  ASSERT_EQ(failing(found), std::vector<std::string>{"gen.tokens"});
  EXPECT_EQ(verdict_of(found, "gen.tokens")->worst->index.front(), 0);
}

/// The place at which the two best logits are nearest to each other, and the second of them.
struct Runner {
  int64_t row = 0, step = 0, token = 0;
  double margin = 1;
};

Runner nearest_runner_up() {
  const HostTensor& logits = *clean().find("gen.logits");
  const int64_t N = logits.shape()[1], vocab = logits.shape()[2];
  Runner nearest;
  for (int64_t b = 0; b < logits.shape()[0]; ++b)
    for (int64_t step = 0; step < N; ++step) {
      int64_t best = 0, next = 1;
      const auto at = [&](int64_t token) { return logits.at((b * N + step) * vocab + token); };
      if (at(next) > at(best)) std::swap(best, next);
      for (int64_t token = 2; token < vocab; ++token) {
        if (at(token) > at(best)) next = std::exchange(best, token);
        if (token != best && at(token) > at(next)) next = token;
      }
      const bool ended = clean().find("gen.tokens")->at(b * N + step) != static_cast<double>(best);
      const double margin = at(best) - at(next);
      if (!ended && margin < nearest.margin) nearest = {b, step, next, margin};
    }
  return nearest;
}

TEST(Decoding, AnotherTokenIsRightWithinTheNoiseAlone) {
  const Runner runner = nearest_runner_up();
  const int64_t N = clean().find("gen.tokens")->shape()[1];
  Decoding decoding = loop().the_case().decoding;
  decoding.steps = runner.step + 1;  // what follows was emitted on another history
  std::vector<double> tokens;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t step = 0; step <= runner.step; ++step)
      tokens.push_back(b == runner.row && step == runner.step
                           ? static_cast<double>(runner.token)
                           : clean().find("gen.tokens")->at(b * N + step));
  Trace trace;
  trace.put("gen.tokens", HostTensor::from_doubles(DType::int64, {2, decoding.steps}, tokens));
  const Loop shorter(decoding);
  EXPECT_EQ(failing(shorter.judge(trace)), std::vector<std::string>{"gen.tokens"});
  const DecodingVerdicts narrow = shorter.judge(trace, {.dtype = DType::bfloat16});
  EXPECT_EQ(verdict_of(narrow, "gen.tokens")->trust, Trust::pass) << told(narrow);
  EXPECT_EQ(verdict_of(narrow, "gen.tokens")->choices->differing, 1);
}

TEST(DecodingFaults, ATokenOutsideOfTheVocabulary) {
  for (const int64_t token : {int64_t{-1}, int64_t{100}}) {
    const DecodingVerdicts found = loop().judge(with_tokens(clean(), {{0, token}}));
    EXPECT_EQ(failing(found).back(), "gen.tokens");
    EXPECT_NE(verdict_of(found, "gen.tokens")->note.find("no token of the vocabulary"),
              std::string::npos);
  }
}

TEST(DecodingFaults, LogitsOfAnotherStep) {
  const HostTensor& right = *clean().find("gen.logits");
  std::vector<double> values = right.to_doubles();
  const int64_t vocab = right.shape()[2];
  std::swap_ranges(values.begin(), values.begin() + vocab, values.begin() + vocab);
  Trace trace = clean();
  trace.put("gen.logits", HostTensor::from_doubles(DType::float32, right.shape(), values));
  const std::vector<std::string> expected = {"gen.logits", "gen.tokens"};
  EXPECT_EQ(failing(loop().judge(trace)), expected);
}

TEST(DecodingFaults, PaddingOnTheRightIsRefused) {
  const Case& c = io::find_case("tiny-rightpad");
  const SyntheticWeights weights(c);
  EXPECT_THROW(GenerateRun(c, make_batch(c), weights), Error);
}

}  // namespace
}  // namespace dsv32::suites
