// What a case costs is known from its config alone, and no config makes the arithmetic overflow.
#include "harness/job/estimate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "harness/job/job_estimate.h"
#include "harness/job/memory.h"
#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/model/trace.h"
#include "src/model/weights.h"

namespace dsv32::harness {
namespace {

double elements_of_specs(const ModelConfig& config) {
  double sum = 0;
  for (const WeightSpec& spec : weight_specs(config)) sum += static_cast<double>(numel(spec.shape));
  return sum;
}

double elements_of_taps(const Case& c) {
  double sum = 0;
  for (const std::string& name : forward_taps(c.config))
    sum += static_cast<double>(numel(*tap_shape(*parse_tap(name), c.config, c.B, c.S)));
  return sum;
}

TEST(SelfEstimate, CountsEveryWeightAndTapOfEveryCase) {
  for (const Case& c : io::cases()) {
    const Work work = work_of(c);
    EXPECT_EQ(work.weights, elements_of_specs(c.config)) << c.name;
    EXPECT_EQ(work.taps, elements_of_taps(c)) << c.name;
    EXPECT_LE(work.layer, work.weights) << c.name;
  }
}

TEST(SelfEstimate, CountsTheProductsOfARoutedTokenOnly) {
  Case c = io::find_case("small");
  const double flops = work_of(c).flops;
  c.config.n_routed_experts *= 2;  // twice the experts, as many of them chosen: the router grows
  EXPECT_LT(work_of(c).flops, flops + flops / 100);
  c = io::find_case("small");
  c.B *= 2;
  EXPECT_EQ(work_of(c).flops, flops * 2);
  // Two operations for each weight that a token meets is the bulk of it at this length.
  const double met = flops / 2 / static_cast<double>(io::find_case("small").B * c.S);
  EXPECT_GT(met, 80e6);
  EXPECT_LT(met, 200e6);
}

TEST(SelfEstimate, NothingOverflows) {
  constexpr int64_t kLargest = int64_t{1} << 30;  // of any field, model/config.cpp
  Case c = io::find_case("tiny");
  ModelConfig& config = c.config;
  for (int64_t* field :
       {&config.vocab_size, &config.hidden_size, &config.intermediate_size,
        &config.moe_intermediate_size, &config.num_attention_heads, &config.num_key_value_heads,
        &config.n_shared_experts, &config.q_lora_rank, &config.kv_lora_rank,
        &config.qk_nope_head_dim, &config.qk_rope_head_dim, &config.v_head_dim,
        &config.index_n_heads, &config.index_head_dim, &config.index_topk})
    *field = kLargest;
  config.num_hidden_layers = 1 << 17;
  c.B = 1, c.S = 1 << 20;
  const Work work = work_of(c);
  for (const double value : {work.weights, work.taps, work.flops, judging_bytes(c, true)}) {
    EXPECT_TRUE(std::isfinite(value));
    EXPECT_GT(value, 1e27);
  }
  EXPECT_THROW(refuse_large_work(c, "file"), Error);
  EXPECT_THROW(refuse_what_does_not_fit(c, judging_bytes(c, true)), Error);
}

TEST(SelfEstimate, EveryCaseUpToSmallIsTakenAndNoneBeyond) {
  for (const Case& c : io::cases()) {
    if (c.config_name == "medium" || c.config_name == "full") {
      EXPECT_THROW(refuse_large_work(c, "file"), Error) << c.name;
    } else {
      EXPECT_NO_THROW(refuse_large_work(c, "file")) << c.name;
    }
  }
}

TEST(SelfEstimate, ALongJobIsAnnounced) {
  EXPECT_EQ(announcement({.bytes = kGiB, .flops = 1e9}), "");
  const std::string text = announcement({.bytes = 9 * kGiB, .flops = 1e15});
  EXPECT_NE(text.find("estimate: about "), std::string::npos) << text;
  EXPECT_NE(text.find("(1000 TFLOP), up to 9 GiB of memory"), std::string::npos) << text;
  Job job{.cases = io::cases_of_config("tiny")};
  EXPECT_EQ(announcement(estimate_of(job)), "");
  job.cases = io::cases_of_config("small");
  const double model = expected_seconds(estimate_of(job));
  EXPECT_NE(announcement(estimate_of(job)), "");
  job.training = {{"loss_descent", io::find_case("small-train")}};
  EXPECT_GT(expected_seconds(estimate_of(job)), model);
}

}  // namespace
}  // namespace dsv32::harness
