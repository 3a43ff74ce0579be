// Several defects of one engine: each is named, in its layers, the gravest on top, and nothing
// else.

#include "harness/cases/diagnosis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <set>

#include "harness/cases/agreement.h"
#include "harness/cases/gradient_patterns.h"
#include "harness/cases/sketched.h"
#include "harness/cases/toggles.h"
#include "harness/job/run_job.h"
#include "src/io/io.h"
#include "src/model/philox.h"

namespace dsv32::suites {
namespace {

using harness::CaseRun;
using harness::Defect;
using harness::Diagnosis;
using harness::gradient_patterns;
using harness::GradientPattern;
using harness::JudgedTrace;
using harness::Mode;
using harness::Toggle;
using harness::Trust;
using harness::Verdict;

const CaseRun& run_of(const std::string& name) {
  static std::map<std::string, std::unique_ptr<CaseRun>> runs;
  auto& slot = runs[name];
  if (!slot) slot = std::make_unique<CaseRun>(io::find_case(name), false);
  return *slot;
}

const std::vector<Toggle>& toggles() {
  static const std::vector<Toggle> all =
      harness::toggles_for(io::find_case("tiny-wide").config, Objective{});
  return all;
}

const Toggle& toggle(const std::string& name) {
  return *std::find_if(toggles().begin(), toggles().end(),
                       [&](const Toggle& t) { return t.name == name; });
}

/// A float32 run of the reference, judged as a stranger's file.
struct Patient {
  explicit Patient(const CaseRun& r, const RunOptions& options)
      : run(r), trace(r.run(options, "patient")) {}

  Diagnosis diagnosis(const std::function<bool(const std::string&)>& kept = {}) {
    Trace held = trace;
    if (kept)
      for (const std::string& name : trace.names())
        if (!kept(name)) held.erase(name);
    const JudgedTrace judged{.subject = {.label = "patient"}, .trace = &held, .is_file = true};
    return harness::diagnose(run, judged, run.judge_subject(judged));
  }

  const CaseRun& run;
  Trace trace;
};

RunOptions planted(const std::vector<std::string>& names) {
  RunOptions options{.dtype = DType::float32};
  for (const std::string& name : names) toggle(name).plant(options.dialect);
  return options;
}

/// The names that give the same numbers: "a or b" -> {a, b}.
std::set<std::string> alternatives(const Defect& defect) {
  std::set<std::string> names;
  std::string rest = defect.name;
  const std::string between = " or ";
  for (size_t at; (at = rest.find(between)) != std::string::npos;
       rest = rest.substr(at + between.size()))
    names.insert(rest.substr(0, at));
  names.insert(rest);
  return names;
}

bool names(const Diagnosis& diagnosis, const std::string& name) {
  return std::any_of(diagnosis.defects.begin(), diagnosis.defects.end(),
                     [&](const Defect& d) { return alternatives(d).contains(name); });
}

std::string show(const Diagnosis& diagnosis) {
  std::string text = diagnosis.profile;
  for (const std::string& cause : diagnosis.causes) text += "\n    " + cause;
  return text;
}

Verdict failed_gradient(const std::string& tap, std::optional<double> gain) {
  return {.tap = tap, .mode = Mode::forced, .trust = Trust::fail, .gain = gain};
}

TEST(GradientPatterns, OneSentenceCoversTheTensorsOfOneKind) {
  const std::string experts = "grad.model.layers.1.mlp.experts.";
  const std::vector<std::string> doubled = {experts + "0.up_proj.weight",
                                            experts + "1.up_proj.weight"};
  const std::string gate = "grad.model.layers.1.mlp.gate.weight";
  const std::string norm = "grad.model.layers.0.input_layernorm.weight";
  const std::string attention = "grad.model.layers.1.self_attn.o_proj.weight";
  const std::vector<Verdict> verdicts = {failed_gradient(doubled[0], 2),
                                         failed_gradient(doubled[1], 2), failed_gradient(gate, 0),
                                         failed_gradient(norm, {}), failed_gradient(attention, {})};
  const auto patterns = gradient_patterns({doubled[0], doubled[1], gate, norm, attention},
                                          {experts + "2.up_proj.weight"}, verdicts);
  std::set<std::string> words;
  for (const GradientPattern& pattern : patterns) words.insert(pattern.words);
  EXPECT_TRUE(words.contains("gradients x 2: the routed experts (2 of 3)")) << *words.begin();
  EXPECT_TRUE(words.contains("gradients are exactly zero: the router (all 1)"));
  EXPECT_TRUE(words.contains("gradients are off from " + attention +
                             " back to the input: the attention (all 1) and the norms of the "
                             "stream (all 1)"));
  EXPECT_EQ(words.size(), 3u);
}

TEST(Diagnosis, ACleanRunHasNoDefect) {
  Patient patient(run_of("tiny-wide"), planted({}));
  EXPECT_EQ(show(patient.diagnosis()), "");
}

TEST(Diagnosis, EveryDefectOfOneEngineIsNamedAndTheGravestStandsOnTop) {
  const std::vector<std::string> seven = {
      "causal-mask-missing", "k-norm-eps",         "eps-q-latent",         "eps-kv-latent",
      "relu-missing",        "softmax-scale-nope", "shared-expert-scaled",
  };
  Patient patient(run_of("tiny-wide"), planted(seven));
  const auto begin = std::chrono::steady_clock::now();
  const Diagnosis diagnosis = patient.diagnosis();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  std::printf("seven defects: %.2f s\n%s\n", took.count(), show(diagnosis).c_str());
  for (const std::string& name : seven) EXPECT_TRUE(names(diagnosis, name)) << name;
  EXPECT_EQ(diagnosis.defects.size(), seven.size()) << show(diagnosis);
  for (size_t i = 1; i < diagnosis.defects.size(); ++i)
    EXPECT_GE(diagnosis.defects[i - 1].severity->weight(), diagnosis.defects[i].severity->weight());
}

TEST(Diagnosis, ADefectOfOneLayerIsNamedWithItsLayer) {
  RunOptions options = planted({});
  toggle("relu-missing").plant(options.layer_dialects[0]);
  toggle("shared-expert-scaled").plant(options.layer_dialects[1]);
  Patient patient(run_of("tiny-wide"), options);
  const Diagnosis diagnosis = patient.diagnosis();
  ASSERT_EQ(diagnosis.defects.size(), 2) << show(diagnosis);
  EXPECT_TRUE(names(diagnosis, "relu-missing")) << show(diagnosis);
  EXPECT_TRUE(names(diagnosis, "shared-expert-scaled")) << show(diagnosis);
  for (const Defect& defect : diagnosis.defects) {
    if (alternatives(defect).contains("relu-missing")) {
      EXPECT_EQ(defect.layers, std::vector<int64_t>{0}) << show(diagnosis);
    }
  }
}

TEST(Diagnosis, ABugIsNamedWithoutTheTapThatItIsFirstSeenIn) {
  for (const char* bug : {"softmax-scale-nope", "softmax-scale-missing"}) {
    Patient patient(run_of("tiny-wide"), planted({bug}));
    const Diagnosis diagnosis = patient.diagnosis([](const std::string& name) {
      return name.find("attn.logits") == std::string::npos &&
             name.find("attn.probs") == std::string::npos;
    });
    EXPECT_TRUE(names(diagnosis, bug)) << show(diagnosis);
  }
}

TEST(Diagnosis, SketchedTapsAreReadByTheRowsThatAreThere) {
  const auto of = [](const std::vector<std::string>& bugs) {
    Patient patient(run_of("tiny-wide"), planted(bugs));
    const Trace held = harness::sketched(patient.trace, patient.run.the_case());
    const JudgedTrace judged{.subject = {.label = "patient"}, .trace = &held, .is_file = true};
    std::vector<Verdict> verdicts = harness::judge_staged_rows(patient.run, judged);
    for (Verdict& verdict : patient.run.judge_subject(judged))
      verdicts.push_back(std::move(verdict));
    return harness::diagnose_sketched(patient.run, judged, verdicts);
  };
  EXPECT_EQ(show(of({})), "");
  const std::vector<std::string> bugs = {"k-norm-eps", "eps-kv-latent", "shared-expert-scaled"};
  const Diagnosis diagnosis = of(bugs);
  for (const std::string& bug : bugs) EXPECT_TRUE(names(diagnosis, bug)) << bug << show(diagnosis);
  EXPECT_EQ(diagnosis.defects.size(), bugs.size()) << show(diagnosis);
}

TEST(Diagnosis, APresetIsNamedOnlyWhenItIsAllThatWasFound) {
  const auto of = [](const std::string& case_name, Dialect dialect) {
    Patient patient(run_of(case_name), {.dtype = DType::float32, .dialect = std::move(dialect)});
    return patient.diagnosis();
  };
  const Diagnosis hf = of("tiny-yarn", find_dialect("hf"));
  EXPECT_NE(hf.profile.find("= dialect hf"), std::string::npos) << show(hf);
  Dialect more = find_dialect("hf");
  more.indexer.eps_k_norm = 1e-5;
  const Diagnosis both = of("tiny-yarn", more);
  EXPECT_EQ(both.profile.find("= dialect"), std::string::npos) << show(both);
  EXPECT_TRUE(names(both, "yarn-amplitude") && names(both, "k-norm-eps")) << show(both);
  // Its other toggles cannot be seen without padding and YaRN.
  const Diagnosis part = of("tiny-nopad", find_dialect("fork-main"));
  EXPECT_TRUE(names(part, "k-norm-eps")) << show(part);
  EXPECT_EQ(show(part).find("fork-main"), std::string::npos) << show(part);
}

TEST(Diagnosis, WhatNothingExplainsIsListed) {
  Patient patient(run_of("tiny-wide"), planted({"k-norm-eps"}));
  const std::string tap = "layers.1.attn.out";
  const HostTensor& right = *patient.trace.find(tap);
  std::vector<double> values = right.to_doubles();
  for (double& value : values) value = value * value;
  patient.trace.put(tap, HostTensor::from_doubles(right.dtype(), right.shape(), values));
  const Diagnosis diagnosis = patient.diagnosis();
  EXPECT_TRUE(names(diagnosis, "k-norm-eps")) << show(diagnosis);
  const bool listed =
      std::any_of(diagnosis.defects.begin(), diagnosis.defects.end(), [&](const Defect& defect) {
        return defect.unexplained() && defect.taps == std::vector<std::string>{tap} &&
               defect.words.find("square") != std::string::npos;
      });
  EXPECT_TRUE(listed) << show(diagnosis);
}

// --- random combinations -------------------------------------------------------------------------

using Combination = std::vector<const Toggle*>;

/// The toggles of the catalogue that tiny-wide shows in the forward pass.
Combination visible_toggles() {
  Combination out;
  for (const KnownBug& bug : known_bugs())
    if (bug.case_name == "tiny-wide" && bug.objective.kl == KlStage::none &&
        !bug.first_tap.starts_with("grad."))
      out.push_back(&toggle(bug.name));
  return out;
}

/// Both are there, whichever is planted first.
bool independent(const Toggle& a, const Toggle& b) {
  const Dialect ab = b.planted(a.planted({})), ba = a.planted(b.planted({}));
  return ab == ba && !(ab == a.planted({})) && !(ab == b.planted({}));
}

bool independent(const Combination& combination) {
  for (size_t i = 0; i < combination.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (!independent(*combination[i], *combination[j])) return false;
  return true;
}

std::vector<std::string> names_of(const Combination& combination) {
  std::vector<std::string> names;
  for (const Toggle* toggle : combination) names.push_back(toggle->name);
  return names;
}

/// The trace of all differs from that of all but `left_out` in what an op makes of its own inputs.
bool is_seen_beside(const CaseRun& run, const Trace& all, const Combination& combination,
                    const Toggle& left_out) {
  RunOptions options{.dtype = DType::float64, .feeding = Feeding::staged, .feed = &all};
  for (const Toggle* toggle : combination)
    if (toggle != &left_out) toggle->plant(options.dialect);
  const Trace without = run.run(options, "without");
  left_out.plant(options.dialect);
  const Trace with = run.run(options, "with");
  const harness::JudgedTrace judged{
      .subject = {.label = "all"}, .trace = &without, .is_file = true};
  const harness::Agreement agreement(run, judged);
  constexpr double kSeen = 1e-5;
  return std::any_of(without.names().begin(), without.names().end(), [&](const std::string& name) {
    return agreement.gap(name, with.find(name), options.dialect) > kSeen;
  });
}

bool all_seen(const CaseRun& run, const Trace& trace, const Combination& combination) {
  return std::all_of(combination.begin(), combination.end(), [&](const Toggle* toggle) {
    return is_seen_beside(run, trace, combination, *toggle);
  });
}

/// A name is true when one of the planted toggles gives its numbers.
bool is_true_name(const Defect& defect, const Combination& combination) {
  if (defect.unexplained()) return true;
  const std::set<std::string> given = alternatives(defect);
  return std::any_of(combination.begin(), combination.end(),
                     [&](const Toggle* toggle) { return given.contains(toggle->name); });
}

/// Two thirds of them pairs, the rest triples.
Combination draw_from(const Combination& all, const PhiloxStream& stream, uint64_t draw) {
  const auto words = stream.block(draw);
  Combination out;
  for (size_t i = 0; i < (words[3] % 3 == 0 ? 3 : 2); ++i)
    out.push_back(all[words[i] % all.size()]);
  return out;
}

/// DSV32_COMBINATIONS=200 tries more of them: the table of docs/calibration.md.
int combinations() {
  const char* asked = std::getenv("DSV32_COMBINATIONS");
  return asked == nullptr ? 50 : std::atoi(asked);
}

TEST(Diagnosis, AllOfTwoOrThreeRandomDefectsAreNamedAndNothingElse) {
  const CaseRun& run = run_of("tiny-wide");
  const Combination all = visible_toggles();
  const PhiloxStream stream(1, "self.combinations");
  std::map<size_t, std::pair<int, int>> counts;  // by size: named in full, tried
  int tried = 0, full = 0, wrong = 0;
  for (uint64_t draw = 0; tried < combinations(); ++draw) {
    const Combination drawn = draw_from(all, stream, draw);
    if (!independent(drawn)) continue;
    Patient patient(run, planted(names_of(drawn)));
    if (!all_seen(run, patient.trace, drawn)) continue;
    ++tried;
    const Diagnosis diagnosis = patient.diagnosis();
    const auto named =
        static_cast<size_t>(std::count_if(drawn.begin(), drawn.end(), [&](const Toggle* toggle) {
          return names(diagnosis, toggle->name);
        }));
    const bool true_names =
        std::all_of(diagnosis.defects.begin(), diagnosis.defects.end(),
                    [&](const Defect& defect) { return is_true_name(defect, drawn); });
    ++counts[drawn.size()].second;
    counts[drawn.size()].first += named == drawn.size() ? 1 : 0;
    full += named == drawn.size() ? 1 : 0;
    wrong += true_names ? 0 : 1;
    if (named == drawn.size() && true_names) continue;
    for (const Toggle* toggle : drawn) std::printf("%s ", toggle->name.c_str());
    std::printf("%zu of %zu%s\n    %s\n", named, drawn.size(), true_names ? "" : "  WRONG NAME",
                show(diagnosis).c_str());
  }
  for (const auto& [size, count] : counts)
    std::printf("%zu defects: all named in %d of %d\n", size, count.first, count.second);
  std::printf("%d combinations: all named in %d, a wrong name in %d\n", tried, full, wrong);
  EXPECT_EQ(wrong, 0);
  EXPECT_GE(full, tried * 9 / 10);
}

}  // namespace
}  // namespace dsv32::suites
