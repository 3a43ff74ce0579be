// A streamed run, segment by segment, against the run of the whole model; bugs planted in one
// layer.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <set>

#include "harness/cases/implementations.h"
#include "harness/cases/layers/run.h"
#include "harness/judge/limits.h"
#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/model/philox.h"
#include "suites/kit/own_subject.h"

namespace dsv32::suites {
namespace {

using harness::CaseRun;
using harness::JudgedTrace;
using harness::LayerRunOptions;
using harness::LayerVerdicts;
using harness::Trust;
using harness::Verdict;

/// The reference with a bug in one layer, judged as anybody's implementation.
JudgedTrace mutant(int64_t layer, const std::function<void(Dialect&)>& plant) {
  JudgedTrace judged = own("reference", DType::float32);
  judged.subject = {.label = "mutant"};
  judged.against_reference = true;
  plant(judged.layer_dialects[layer]);
  return judged;
}

std::vector<Verdict> verdicts_of(const CaseRun& run, const JudgedTrace& subject,
                                 const std::string& words) {
  const LayerRunOptions options{.selection = harness::parse_layers(words, run.the_case().config)};
  return harness::judge_layers(run, {subject}, options).front().verdicts;
}

std::string failures(const std::vector<Verdict>& verdicts) {
  std::string text;
  for (const Verdict& v : verdicts)
    if (v.trust != Trust::pass && v.trust != Trust::skipped)
      text += v.tap + " (" + std::string(to_string(v.mode)) + ") " +
              std::string(to_string(v.trust)) + " " + v.note + "\n";
  return text;
}

/// Tap and mode of what was judged, with its answer.
std::map<std::string, Trust> answers(const std::vector<Verdict>& verdicts) {
  std::map<std::string, Trust> all;
  for (const Verdict& v : verdicts) all[v.tap + " " + std::string(to_string(v.mode))] = v.trust;
  return all;
}

TEST(LayerWords, AreSortedAndNamed) {
  const ModelConfig config = io::read_config("small");
  const auto selection = harness::parse_layers("7,head,0,3", config);
  EXPECT_EQ(selection.layers, (std::vector<int64_t>{0, 3, 7}));
  EXPECT_FALSE(selection.embed);
  EXPECT_EQ(harness::describe(selection), "layers 0, 3 and 7, head");
  EXPECT_EQ(harness::describe(harness::every_layer(config)), "embedding, layers 0 to 7, head");
}

TEST(LayerWords, ThatMakeNoSenseAreUsageErrors) {
  const ModelConfig config = io::read_config("tiny");
  for (const char* words : {"", ",", "0,", "2", "-1", "0,0", "head,head", "one", "0x1", "1.0",
                            "99999999999999999999"}) {
    SCOPED_TRACE(words);
    try {
      harness::parse_layers(words, config);
      ADD_FAILURE() << "it was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage);
    }
  }
}

TEST(LayerChains, AreTheMaximalRunsOfConsecutiveParts) {
  const ModelConfig config = io::read_config("small");
  const auto chains =
      harness::chains_of(harness::parse_layers("embed,0,3,4,7,head", config), config);
  ASSERT_EQ(chains.size(), 3U);
  EXPECT_EQ(chains[0].segments.size(), 3U);
  EXPECT_FALSE(chains[0].begins_at);
  EXPECT_EQ(chains[1].begins_at, 3);
  EXPECT_EQ(chains[1].segments.size(), 4U);
  EXPECT_EQ(chains[2].begins_at, 7);
  EXPECT_EQ(chains[2].segments.back().kind, SegmentKind::head);
  const auto apart = harness::chains_of(harness::parse_layers("embed,1,head", config), config);
  ASSERT_EQ(apart.size(), 3U);
  EXPECT_EQ(apart[2].begins_at, 8);
}

TEST(LayerStreams, AreTheSameOnEveryMachine) {
  const HostTensor hidden = synthetic_hidden(1, 3, {1, 2, 64});
  const HostTensor other = synthetic_hidden(1, 4, {1, 2, 64});
  EXPECT_FALSE(hidden.identical(other));
  EXPECT_TRUE(hidden.identical(hidden.cast(DType::bfloat16).cast(DType::float32)));
  // docs/formats.md 1: an element depends on seed, name and index alone.
  const PhiloxStream stream(1, "hidden.3");
  for (int64_t i = 0; i < hidden.numel(); ++i) {
    const uint16_t lane = stream.lane16(static_cast<uint64_t>(i));
    const int bell = (lane & 15) + (lane >> 4 & 15) + (lane >> 8 & 15) + (lane >> 12) - 30;
    ASSERT_EQ(hidden.at(i), bell * 0.125) << i;
  }
}

class WholeAndStreamed : public testing::TestWithParam<std::tuple<std::string, DType>> {};

TEST_P(WholeAndStreamed, GiveTheSameAnswers) {
  const auto [impl, dtype] = GetParam();
  const CaseRun run(io::find_case("tiny-wide"), false);
  JudgedTrace subject = own(impl, dtype);
  const LayerRunOptions options{.selection = harness::every_layer(run.the_case().config)};
  const std::vector<LayerVerdicts> streamed = harness::judge_layers(run, {subject}, options);
  EXPECT_EQ(failures(streamed.front().verdicts), "");
  const Trace trace = run.run({.dtype = dtype}, impl, impl);
  subject.trace = &trace;
  EXPECT_EQ(answers(streamed.front().verdicts), answers(run.judge_subject(subject)));
}

INSTANTIATE_TEST_SUITE_P(Tiny, WholeAndStreamed,
                         testing::Combine(testing::Values("reference", "optimized"),
                                          testing::Values(DType::float32, DType::bfloat16)));

TEST(StreamedRun, StartsALayerFromItsStream) {
  const CaseRun run(io::find_case("tiny-wide"), false);
  const auto verdicts = verdicts_of(run, own("optimized", DType::float32), "1");
  EXPECT_EQ(failures(verdicts), "");
  for (const Verdict& v : verdicts) EXPECT_EQ(v.layer.value_or(1), 1) << v.tap;
}

using Names = std::set<std::string>;

Names names_of(const std::vector<WeightSpec>& specs) {
  Names names;
  for (const WeightSpec& spec : specs) names.insert(spec.name);
  return names;
}

/// Weights that note what a run announces, and what it reads without a word.
class Announced : public WeightSource {
 public:
  struct Pass {
    Names now, then;
  };
  explicit Announced(const Case& c) : weights_(c) {}
  void expect(const std::vector<WeightSpec>& now,
              const std::vector<WeightSpec>& then) const override {
    passes.push_back({names_of(now), names_of(then)});
  }
  HostTensor load(const WeightSpec& spec) const override {
    note(spec.name);
    return weights_.load(spec);
  }
  HostTensor load_rows(const WeightSpec& spec, int64_t begin, int64_t end) const override {
    note(spec.name);
    return weights_.load_rows(spec, begin, end);
  }
  std::string identity() const override { return weights_.identity(); }

  mutable std::vector<Pass> passes;
  mutable Names unannounced;

 private:
  void note(const std::string& name) const {
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    if (!passes.empty() && !passes.back().now.contains(name)) unannounced.insert(name);
  }

  SyntheticWeights weights_;
};

TEST(StreamedRun, AnnouncesTheWeightsThatItReads) {
  const Case& c = io::find_case("tiny");
  const Announced weights(c);
  const CaseRun run(c, make_batch(c), weights, false);
  verdicts_of(run, own("optimized", DType::float32), "embed,0,1,head");
  EXPECT_EQ(weights.unannounced, Names{"model.embed_tokens.weight"});  // rows here and there
  size_t known_ends = 0;
  for (size_t i = 1; i < weights.passes.size(); ++i) {
    const Announced::Pass &before = weights.passes[i - 1], &after = weights.passes[i];
    EXPECT_TRUE(
        std::includes(before.then.begin(), before.then.end(), after.now.begin(), after.now.end()))
        << "pass " << i;
    const bool repeats =
        std::includes(before.then.begin(), before.then.end(), before.now.begin(), before.now.end());
    known_ends += before.now != after.now && !repeats ? 1 : 0;
  }
  EXPECT_EQ(known_ends,
            4U);  // of two layers' halves; how long the first segment takes is not known
}

TEST(StreamedRun, JudgesTheHeadAlone) {
  const CaseRun run(io::find_case("tiny-wide"), false);
  const auto verdicts = verdicts_of(run, own("optimized", DType::bfloat16), "head");
  EXPECT_EQ(failures(verdicts), "");
  EXPECT_TRUE(answers(verdicts).contains("logits staged"));
  EXPECT_TRUE(answers(verdicts).contains("loss.lm forced"));
}

struct Planted {
  const char* name;
  const char* case_name;
  const char* words;
  int64_t layer;
  const char* tap;
  std::function<void(Dialect&)> plant;
};

class PlantedInALayer : public testing::TestWithParam<Planted> {};

TEST_P(PlantedInALayer, IsCaughtThere) {
  const Planted& p = GetParam();
  const CaseRun run(io::find_case(p.case_name), false);
  const auto verdicts = verdicts_of(run, mutant(p.layer, p.plant), p.words);
  const Verdict* failure = harness::first_failure(verdicts);
  ASSERT_NE(failure, nullptr);
  EXPECT_EQ(failure->tap, layer_tap(p.layer, p.tap));
  EXPECT_EQ(failure->mode, harness::Mode::staged);
}

INSTANTIATE_TEST_SUITE_P(All, PlantedInALayer,
                         testing::Values(Planted{"KNormEps", "tiny-wide", "0,1", 1, "ix.k",
                                                 [](Dialect& d) { d.indexer.eps_k_norm = 1e-5; }},
                                         Planted{
                                             "GroupFill", "tiny-bias", "1", 1, "router.experts",
                                             [](Dialect& d) { d.router.group_fill_zero = true; }},
                                         Planted{"SharedMissing", "tiny-wide", "1", 1, "mlp.out",
                                                 [](Dialect& d) { d.moe.shared_missing = true; }},
                                         Planted{"KNormEpsAtFullSize", "full-short", "0", 0, "ix.k",
                                                 [](Dialect& d) { d.indexer.eps_k_norm = 1e-5; }}),
                         [](const auto& info) { return info.param.name; });

/// tiny with an attention matrix and logits so large that they go in blocks and few rows are kept.
Case wide_case() {
  Case c = io::find_case("tiny-wide");
  c.config.num_attention_heads = c.config.num_key_value_heads = 64;
  c.config.max_position_embeddings = 2048;
  c.config.vocab_size = 70'000;
  c.B = 1, c.S = 1024, c.pad = 0;
  return c;
}

/// Of the queries that are not kept, the stage of attn.ctx begins at queries and keys.
void expect_cap_of_stage(const Verdict& v) {
  const TapName tap = *parse_tap(v.tap);
  const harness::Mode mode =
      tap.info.name == "attn.ctx" ? harness::Mode::forced : harness::Mode::staged;
  for (const harness::Measure& measure : v.measures)
    if (measure.metric == "cap")
      EXPECT_EQ(measure.limit, harness::limits_for(tap, mode, DType::float32).cap) << v.tap;
}

TEST(Blocks, OfALargeCaseAreJudgedOnTheRowsThatAreKept) {
  const CaseRun run(wide_case(), false);
  ASSERT_LT(queries_at_once(run.the_case().config, 1, 1024), 1024);
  for (const char* impl : {"reference", "optimized"}) {
    const auto verdicts = verdicts_of(run, own(impl, DType::float32), "embed,0,1,head");
    EXPECT_EQ(failures(verdicts), "") << impl;
    const bool held = std::string(impl) == "reference";
    int64_t probabilities = 0, logits = 0;
    for (const Verdict& v : verdicts) {
      if (v.mode == harness::Mode::staged && v.layer == 0) expect_cap_of_stage(v);
      if (v.tap == "layers.0.attn.probs" && held) probabilities = v.checked;
      if (v.tap == "logits") logits = v.checked;
    }
    EXPECT_EQ(logits, 64 * run.the_case().config.vocab_size);
    if (held) EXPECT_LE(probabilities, 64 * 64 * run.the_case().config.index_topk);
    if (held) EXPECT_GT(probabilities, 0);
  }
}

TEST(Blocks, ShowABugOfTheAttention) {
  const CaseRun run(wide_case(), false);
  const auto scaled =
      verdicts_of(run, mutant(1, [](Dialect& d) { d.attention.scale = SoftmaxScale::nope; }), "1");
  const Verdict* failure = harness::first_failure(scaled);
  ASSERT_NE(failure, nullptr);
  EXPECT_EQ(failure->tap, "layers.1.attn.logits");
  ASSERT_TRUE(failure->worst);
  // The query's own position, not its place among the kept.
  EXPECT_TRUE(std::ranges::binary_search(spread_queries(64, 1024), failure->worst->index.at(2)));
}

TEST(KeptQueries, AreAllOfASmallCaseAndFewOfALargeOne) {
  const Case& small = io::find_case("small");
  EXPECT_EQ(std::ssize(kept_queries(small.config, small.B, small.S)), small.S);
  const Case& full = io::find_case("full");
  const auto kept = kept_queries(full.config, full.B, full.S);
  ASSERT_EQ(kept.size(), 64U);
  EXPECT_EQ(kept.front(), 0);
  EXPECT_EQ(kept[1], 69);
  EXPECT_EQ(kept.back(), full.S - 1);
}

}  // namespace
}  // namespace dsv32::suites
