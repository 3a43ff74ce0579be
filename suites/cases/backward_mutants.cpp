// Backward passes that are wrong in one op, behind a forward pass that is right: the judge must
// name that op and its layer, and say nothing of a right one.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <functional>

#include "harness/cases/backward_origin.h"
#include "harness/cases/case_run.h"
#include "harness/cases/diagnosis.h"
#include "src/io/io.h"

namespace dsv32::suites {
namespace {

using harness::BackwardOrigin;
using harness::CaseRun;
using harness::JudgedTrace;
using harness::Verdict;
using Slopes = std::map<std::string, HostTensor>;

HostTensor zeros_like(const HostTensor& value) { return {value.dtype(), value.shape()}; }

/// Values of a tensor changed one by one, with their flat index.
HostTensor changed(const HostTensor& value, const std::function<double(double, int64_t)>& change) {
  std::vector<double> values = value.to_doubles();
  for (size_t i = 0; i < values.size(); ++i) values[i] = change(values[i], static_cast<int64_t>(i));
  return HostTensor::from_doubles(value.dtype(), value.shape(), values);
}

HostTensor scaled(const HostTensor& value, double factor) {
  return changed(value, [factor](double x, int64_t) { return factor * x; });
}

/// The float32 reference of one case, and backward passes on its values.
class Values {
 public:
  explicit Values(const std::string& name, const Objective& objective = {})
      : run(io::find_case(name), true, {}, objective),
        clean(run.run({.dtype = DType::float32, .backward = true, .slopes = true}, "clean")) {}

  /// On the same values, with these gradients handed back at these taps.
  Trace backward(const Slopes& handed, const Dialect& dialect = {}) const {
    Trace feed = clean;
    feed.slopes = handed;
    Trace own = run.run({.dtype = DType::float32,
                         .dialect = dialect,
                         .backward = true,
                         .slopes = true,
                         .feeding = Feeding::staged,
                         .feed = &feed},
                        "mutant");
    Trace out = clean;
    out.slopes = own.slopes;
    for (const auto& [tap, slope] : handed) out.slopes[tap] = slope;
    for (const std::string& name : own.names())
      if (name.starts_with("grad.")) out.put(name, *own.find(name));
    return out;
  }

  /// What one op hands to a tap.
  HostTensor share(const std::string& op, const std::string& tap) const {
    Slopes alone = clean.slopes;
    for (auto& [name, slope] : alone)
      if (name != op) slope = zeros_like(slope);
    Trace feed = clean;
    feed.slopes = alone;
    return run
        .run({.dtype = DType::float32,
              .backward = true,
              .slopes = true,
              .feeding = Feeding::staged,
              .feed = &feed},
             "share")
        .slopes.at(tap);
  }

  const HostTensor& slope(const std::string& tap) const { return clean.slopes.at(tap); }

  const CaseRun run;
  const Trace clean;
};

const Values& wide() {
  static const Values values("tiny-wide");
  return values;
}

/// The tap gets the share of one op `factor` times.
Trace with_share(const Values& v, const std::string& op, const std::string& tap, double factor) {
  const HostTensor share = v.share(op, tap);
  return v.backward({{tap, changed(v.slope(tap), [&](double x, int64_t i) {
                        return x + (factor - 1) * share.at(i);
                      })}});
}

Trace with_dialect(const Values& v, const std::function<void(Dialect&)>& plant) {
  Dialect dialect;
  plant(dialect);
  return v.backward({}, dialect);
}

/// y = w x / rms: dx = w g / rms, as if rms were a constant. Of the block norm of a layer.
Trace without_variance(const Values& v) {
  const HostTensor &in = *v.clean.find("layers.0.hidden"),
                   &out = *v.clean.find("layers.1.attn.out"),
                   &norm = *v.clean.find("layers.1.ffn_norm"), &g = v.slope("layers.1.ffn_norm");
  const HostTensor share = v.share("layers.1.ffn_norm", "layers.1.attn.out");
  const auto wrong = [&](const HostTensor& slope) {
    return changed(slope, [&](double x, int64_t i) {
      const double middle = in.at(i) + out.at(i);
      const double factor = middle != 0 ? norm.at(i) / middle : 0;  // w / rms
      return x - share.at(i) + factor * g.at(i);
    });
  };
  const Slopes first = {{"layers.1.attn.out", wrong(v.slope("layers.1.attn.out"))}};
  const Trace half = v.backward(first);
  Slopes both = first;
  both["layers.0.hidden"] = wrong(half.slopes.at("layers.0.hidden"));
  return v.backward(both);
}

/// dlogits = p dp in place of p (dp - sum p dp).
Trace without_row_sum(const Values& v) {
  const std::string logits = "layers.1.attn.logits";
  const HostTensor &p = *v.clean.find("layers.1.attn.probs"), &dp = v.slope("layers.1.attn.probs");
  return v.backward(
      {{logits, changed(v.slope(logits), [&](double, int64_t i) { return p.at(i) * dp.at(i); })}});
}

Trace without_rows(const Values& v, const std::string& tap) {
  const Shape shape = v.slope(tap).shape();
  const int64_t width = shape.back(), S = shape[1];
  return v.backward({{tap, changed(v.slope(tap), [&](double x, int64_t i) {
                        return i / width % S % 7 == 6 ? 0 : x;
                      })}});
}

/// The gradients of the experts' weights alone.
Trace experts_doubled(const Values& v) {
  Trace trace = v.clean;
  for (const std::string& name : v.clean.names())
    if (name.starts_with("grad.") && name.find(".mlp.experts.") != std::string::npos)
      trace.put(name, scaled(*v.clean.find(name), 2));
  return trace;
}

/// The gradient of the shared rope key from half of the heads, as where heads are sharded and
/// nobody sums over the ranks.
Trace rope_key_of_half_the_heads(const Values& v) {
  const std::string logits = "layers.1.attn.logits", key = "layers.1.k_rope";
  const Shape shape = v.slope(logits).shape();
  const int64_t per_head = shape[2] * shape[3];
  const Trace half = v.backward({{logits, changed(v.slope(logits), [&](double x, int64_t i) {
                                    return i / per_head % shape[1] < shape[1] / 2 ? x : 0;
                                  })}});
  return v.backward({{key, half.slopes.at(key)}});
}

/// Each rank of an expert-parallel run knows the gradients by the weights of its own experts alone.
Trace routing_weights_of_half_the_experts(const Values& v) {
  const std::string tap = "layers.1.router.weights";
  const HostTensor& experts = *v.clean.find("layers.1.router.experts");
  return v.backward({{tap, changed(v.slope(tap), [&](double x, int64_t i) {
                        return experts.at(i) < 8 ? x : 0;
                      })}});
}

/// What is computed again for the backward pass selects what the token before selected.
Trace selection_of_another_pass(const Values& v) {
  const std::string tap = "layers.1.topk";
  const HostTensor& topk = *v.clean.find(tap);
  const int64_t width = topk.shape().back();
  Trace stale = v.clean;
  stale.put(tap, changed(topk, [&](double x, int64_t i) {
              return i < width || i % topk.numel() == 0 ? x : topk.at(i - width);
            }));
  const Trace own = v.run.run({.dtype = DType::float32,
                               .backward = true,
                               .slopes = true,
                               .feeding = Feeding::staged,
                               .feed = &stale},
                              "mutant");
  return v.backward({{"layers.1.attn.logits", own.slopes.at("layers.1.attn.logits")}});
}

struct Mutant {
  const char* name;
  const char* op;     // that must be named
  const char* words;  // that must stand in what is said
  std::function<Trace(const Values&)> make;
};

const std::vector<Mutant>& mutants() {
  static const std::vector<Mutant> all = {
      {"norm without the variance term", "layers.1.ffn_norm", "layers.1.ffn_norm is wrong",
       without_variance},
      {"softmax without the row sum", "layers.1.attn.probs", "layers.1.attn.probs is wrong",
       without_row_sum},
      {"attention output detached", "layers.1.attn.out", "nothing arrives at layers.1.attn.out",
       [](const Values& v) {
         return v.backward({{"layers.1.attn.out", zeros_like(v.slope("layers.1.attn.out"))}});
       }},
      {"router gradient halved", "layers.1.router.logits",
       "what it hands to layers.1.ffn_norm is multiplied by 0.5",
       [](const Values& v) {
         return with_share(v, "layers.1.router.logits", "layers.1.ffn_norm", 0.5);
       }},
      {"router weights halved", "layers.1.router.weights",
       "what it hands to layers.1.router.logits (gain 0.5",
       [](const Values& v) {
         return with_share(v, "layers.1.router.weights", "layers.1.router.logits", 0.5);
       }},
      {"dropped on every seventh token", "layers.0.mlp.out", "modulo 7",
       [](const Values& v) { return without_rows(v, "layers.0.ffn_norm"); }},
      {"latent detached", "layers.1.kv_latent", "what it hands to layers.1.attn_norm is missing",
       [](const Values& v) {
         return with_share(v, "layers.1.kv_latent", "layers.1.attn_norm", 0);
       }},
      {"residual around the MLP missing", "layers.1.hidden",
       "the residual path around the MLP of layer 1",
       [](const Values& v) { return with_share(v, "layers.1.hidden", "layers.1.attn.out", 0); }},
      {"residual around the attention missing", "layers.1.attn.out",
       "the residual path around the attention of layer 1",
       [](const Values& v) {
         const std::string tap = "layers.0.hidden";
         const HostTensor& around = v.slope("layers.1.attn.out");
         return v.backward(
             {{tap, changed(v.slope(tap), [&](double x, int64_t i) { return x - around.at(i); })}});
       }},
      {"gradients of the experts alone doubled", "layers.1.moe.routed",
       "gradients x 2: the routed experts (all 45)", experts_doubled},
      {"RoPE backward in the wrong sense", "layers.1.q_rope", "layers.1.q_rope is wrong",
       [](const Values& v) {
         return with_dialect(v, [](Dialect& d) { d.rope.q_reversed = true; });
       }},
      {"SiLU backward missing in the experts", "layers.1.moe.routed",
       "layers.1.moe.routed is wrong",
       [](const Values& v) {
         return with_dialect(v, [](Dialect& d) { d.moe.silu_routed = false; });
       }},
      {"gate and up exchanged in the dense backward", "layers.0.mlp.out",
       "layers.0.mlp.out is wrong",
       [](const Values& v) {
         return with_dialect(v, [](Dialect& d) { d.moe.swapped_dense = true; });
       }},
      {"weights not normalised in the router's backward", "layers.1.router.weights",
       "layers.1.router.weights is wrong",
       [](const Values& v) {
         return with_dialect(v, [](Dialect& d) { d.router.normalise = false; });
       }},
      {"another softmax scale in the backward", "layers.1.attn.logits",
       "layers.1.attn.logits is wrong",
       [](const Values& v) {
         return with_dialect(v, [](Dialect& d) { d.attention.scale = SoftmaxScale::nope; });
       }},
      {"shared expert detached", "layers.1.moe.shared", "nothing arrives at layers.1.moe.shared",
       [](const Values& v) {
         return with_dialect(v, [](Dialect& d) { d.moe.shared_missing = true; });
       }},
      {"latent norm with another eps in the backward", "layers.1.q_latent",
       "layers.1.q_latent is wrong",
       [](const Values& v) {
         return with_dialect(v, [](Dialect& d) { d.norm.eps_q_latent = 1e-2; });
       }},
      {"no gradient through a linear to its input", "layers.1.attn.ctx",
       "nothing arrives at layers.1.attn.ctx",
       [](const Values& v) {
         return v.backward({{"layers.1.attn.ctx", zeros_like(v.slope("layers.1.attn.ctx"))}});
       }},
      {"rope key: half of the heads", "layers.1.attn.logits", "what it hands to layers.1.k_rope",
       rope_key_of_half_the_heads},
      {"routing weights: half of the experts", "layers.1.moe.routed",
       "what it hands to layers.1.router.weights", routing_weights_of_half_the_experts},
      {"recomputed with another selection", "layers.1.attn.probs",
       "what it hands to layers.1.attn.logits", selection_of_another_pass},
      {"head gradient doubled", "loss.lm", "gain 2",
       [](const Values& v) {
         return v.backward({{"logits", scaled(v.slope("logits"), 2)}});
       }},
  };
  return all;
}

JudgedTrace judged_of(const Trace& trace) {
  return {.subject = {.label = "mutant"}, .trace = &trace, .is_file = true};
}

/// The staged failures that are no gradients.
int64_t forward_failures(const std::vector<Verdict>& verdicts) {
  return std::count_if(verdicts.begin(), verdicts.end(), [](const Verdict& v) {
    return v.trust == harness::Trust::fail && parse_tap(v.tap) && !v.tap.starts_with("grad.");
  });
}

bool names(const std::vector<BackwardOrigin>& origins, const Mutant& mutant) {
  return std::any_of(origins.begin(), origins.end(), [&](const BackwardOrigin& origin) {
    return origin.op == mutant.op && origin.words.find(mutant.words) != std::string::npos;
  });
}

class BackwardMutantTest : public testing::TestWithParam<size_t> {};

TEST_P(BackwardMutantTest, ItsOpIsNamed) {
  const Mutant& mutant = mutants()[GetParam()];
  const Trace trace = mutant.make(wide());
  const JudgedTrace judged = judged_of(trace);
  const std::vector<Verdict> verdicts = wide().run.judge_subject(judged);
  EXPECT_EQ(forward_failures(verdicts), 0);
  const auto origins = harness::backward_origins(wide().run, judged, verdicts);
  std::printf("%-48s", mutant.name);
  for (const BackwardOrigin& origin : origins)
    std::printf(" [%s] %s;", origin.op.c_str(), origin.words.substr(0, 220).c_str());
  std::printf("\n");
  ASSERT_FALSE(origins.empty());
  EXPECT_TRUE(names(origins, mutant)) << origins.front().op << ": " << origins.front().words;
  EXPECT_EQ(origins.size(), 1U);
  const harness::Diagnosis diagnosis = harness::diagnose(wide().run, judged, verdicts);
  EXPECT_FALSE(diagnosis.defects.empty());
}

INSTANTIATE_TEST_SUITE_P(All, BackwardMutantTest, testing::Range<size_t>(0, mutants().size()));

void expect_silence(const CaseRun& run, const Trace& trace, DType dtype, const std::string& what) {
  JudgedTrace judged = judged_of(trace);
  judged.dtype = dtype;
  int64_t slopes = 0;
  for (const Verdict& verdict : run.judge_staged(judged)) {
    slopes += parse_slope(verdict.tap) ? 1 : 0;
    if (verdict.trust != harness::Trust::fail) continue;
    std::string text = what + " " + verdict.tap;
    for (const harness::Measure& m : verdict.measures)
      if (!m.within())
        text += " " + m.metric + " " + std::to_string(m.measured) + " > " + std::to_string(m.limit);
    ADD_FAILURE() << text;
  }
  EXPECT_GT(slopes, 10) << what;
}

/// The KL's gradient is scaled by the number of micro-batches, its printed value is right.
TEST(BackwardOfTheKl, ItsScaleIsNamed) {
  const Values v("tiny-wide", {.lm = false, .kl = KlStage::sparse});
  Slopes handed;
  for (const char* tap : {"layers.0.ix.scores", "layers.1.ix.scores"})
    handed[tap] = scaled(v.slope(tap), 4);
  const Trace trace = v.backward(handed);
  const JudgedTrace judged = judged_of(trace);
  const auto origins = harness::backward_origins(v.run, judged, v.run.judge_subject(judged));
  ASSERT_EQ(origins.size(), 1U);
  EXPECT_EQ(origins.front().layers, (std::vector<int64_t>{0, 1}));
  EXPECT_NE(origins.front().words.find("kl.rows"), std::string::npos) << origins.front().words;
  EXPECT_NE(origins.front().words.find("gain 4"), std::string::npos) << origins.front().words;
}

TEST(CleanBackward, BothModelsAreSilent) {
  for (const char* name : {"tiny-wide", "tiny-yarn", "tiny-dense", "tiny-short9"}) {
    const CaseRun run(io::find_case(name));
    for (const char* impl : {"reference", "optimized"}) {
      const RunOptions options{.dtype = DType::float32, .backward = true, .slopes = true};
      expect_silence(run, run.run(options, "clean", impl), DType::float32,
                     std::string(name) + " " + impl);
    }
  }
}

TEST(CleanBackward, TheIndexersOwnObjectiveIsSilent) {
  for (const KlStage stage : {KlStage::warmup, KlStage::sparse}) {
    const CaseRun run(io::find_case("tiny-wide"), true, {}, {.lm = false, .kl = stage});
    for (const char* impl : {"reference", "optimized"}) {
      const Trace trace =
          run.run({.dtype = DType::float32, .backward = true, .slopes = true}, "clean", impl);
      JudgedTrace judged = judged_of(trace);
      int64_t checked = 0;
      for (const Verdict& verdict : run.judge_staged(judged)) {
        checked += parse_slope(verdict.tap) && verdict.tap.find(".ix.") != std::string::npos;
        EXPECT_NE(verdict.trust, harness::Trust::fail) << impl << " " << verdict.tap;
      }
      EXPECT_EQ(checked, 8) << impl;
    }
  }
}

}  // namespace
}  // namespace dsv32::suites
