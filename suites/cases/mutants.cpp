// The judge must catch every known bug and every corrupted trace, name the right first tap, and
// print the table.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <map>

#include "harness/cases/case_run.h"
#include "harness/cases/diagnosis.h"
#include "harness/judge/compare.h"
#include "src/io/io.h"

namespace dsv32::suites {
namespace {

using harness::CaseRun;
using harness::JudgedTrace;
using harness::Verdict;

struct Row {
  std::string mutant, caught_by, expected, first_tap, wrong_names;
  bool caught = false, right = false, named = false;
};

std::vector<Row>& rows() {
  static std::vector<Row> all;
  return all;
}

void print_table() {
  std::printf("%-30s %-7s %-32s %-36s %-6s %s\n", "mutant", "caught", "by", "first tap", "right",
              "named");
  for (const Row& r : rows()) {
    std::printf("%-30s %-7s %-32s %-36s %-6s %s\n", r.mutant.c_str(), r.caught ? "yes" : "MISSED",
                r.caught_by.c_str(), r.first_tap.c_str(), r.right ? "yes" : "WRONG",
                r.named ? "yes" : "no");
    if (!r.wrong_names.empty()) std::printf("    wrong names: %s\n", r.wrong_names.c_str());
  }
  const auto count = [](bool Row::*flag) {
    return std::count_if(rows().begin(), rows().end(), [flag](const Row& r) { return r.*flag; });
  };
  std::printf("%zu mutants: %ld caught, %ld right first tap\n", rows().size(), count(&Row::caught),
              count(&Row::right));
}

/// The reference of one case in float32 with a bug planted, as a candidate.
class MutantCase {
 public:
  explicit MutantCase(const std::string& name, const Objective& objective = {})
      : run_(io::find_case(name), true, {}, objective) {}

  Trace trace(const Dialect& dialect) const {
    return run_.run({.dtype = DType::float32, .dialect = dialect, .backward = true}, "mutant");
  }

  Row judge(const std::string& mutant, const std::string& expected, const Trace& trace) const {
    const JudgedTrace judged{.subject = {.label = "mutant"}, .trace = &trace, .is_file = true};
    const std::vector<Verdict> verdicts = run_.judge_subject(judged);
    Row row{.mutant = mutant, .expected = expected};
    const Verdict* failure = harness::first_failure(verdicts);
    if (failure == nullptr) return row;
    row.caught = true;
    row.first_tap = failure->tap;
    row.right = tap_stem(failure->tap) == expected || failure->tap == expected;
    row.caught_by = std::string(to_string(failure->mode));
    for (const harness::Measure& m : failure->measures) {
      if (!m.within()) row.caught_by += " " + m.metric;
    }
    for (const harness::Defect& defect : harness::diagnose(run_, judged, verdicts).defects) {
      if (defect.unexplained()) continue;
      const bool right = (" " + defect.name + " ").find(" " + mutant + " ") != std::string::npos;
      row.named = row.named || right;
      if (!right) row.wrong_names += (row.wrong_names.empty() ? "" : ", ") + defect.name;
    }
    return row;
  }

  const CaseRun& run() const { return run_; }

 private:
  CaseRun run_;
};

const MutantCase& mutant_case(const std::string& name, const Objective& objective = {}) {
  static std::map<std::pair<std::string, KlStage>, std::unique_ptr<MutantCase>> cases;
  auto& slot = cases[{name, objective.kl}];
  if (!slot) slot = std::make_unique<MutantCase>(name, objective);
  return *slot;
}

class KnownBugTest : public testing::TestWithParam<size_t> {};

TEST_P(KnownBugTest, IsCaughtAtItsFirstTap) {
  const KnownBug& bug = known_bugs()[GetParam()];
  const MutantCase& c = mutant_case(bug.case_name, bug.objective);
  Dialect planted;
  bug.plant(planted);
  const Row row = c.judge(bug.name, bug.first_tap, c.trace(planted));
  rows().push_back(row);
  EXPECT_TRUE(row.caught) << bug.name << " in " << bug.case_name;
  EXPECT_TRUE(row.right) << bug.name << ": expected first tap " << bug.first_tap << ", got "
                         << row.first_tap;
  EXPECT_TRUE(row.named) << bug.name << ": the cause was not named";
  EXPECT_EQ(row.wrong_names, "") << bug.name;
}

INSTANTIATE_TEST_SUITE_P(All, KnownBugTest, testing::Range<size_t>(0, known_bugs().size()),
                         [](const auto& info) {
                           std::string name = known_bugs()[info.param].name;
                           std::erase(name, '-');
                           return name;
                         });

/// A corruption of a clean trace and the tap it must be found at.
struct Corruption {
  std::string name;
  std::string tap;
  std::function<void(const MutantCase&, Trace&)> apply;
};

/// A deep copy of a tap, to be changed and put back.
HostTensor copy_of(const Trace& trace, const std::string& tap) {
  const HostTensor& old = *trace.find(tap);
  return HostTensor::from_doubles(old.dtype(), old.shape(), old.to_doubles());
}

void change(Trace& trace, const std::string& tap,
            const std::function<void(std::span<float>, int64_t)>& edit) {
  HostTensor copy = copy_of(trace, tap);
  edit(copy.data<float>(), copy.shape().back());
  trace.put(tap, copy);
}

constexpr int64_t kRow = 20;  // a judged token row of batch row 0 in tiny-wide

/// Moves the largest element of one row by 128 times the noise that the judge sees at that element.
void move_largest(const MutantCase& c, Trace& trace, const std::string& tap) {
  const CaseRun& run = c.run();
  const harness::ForcedTraces forced = run.forced_traces({}, &trace);
  RunOptions options{.dtype = DType::float32, .feeding = Feeding::staged, .feed = &trace};
  const Trace reference = run.run(options, "reference");
  options.dtype = DType::float64;
  const Trace oracle = run.run(options, "oracle");
  change(trace, tap, [&](std::span<float> values, int64_t width) {
    int64_t largest = kRow * width;
    for (int64_t i = kRow * width; i < (kRow + 1) * width; ++i) {
      if (std::fabs(values[i]) > std::fabs(values[largest])) largest = i;
    }
    harness::Comparison comparison{
        .config = &run.the_case().config,
        .batch = &run.batch(),
        .tap = *parse_tap(tap),
        .judged = trace.find(tap),
        .yardstick = {.oracle = oracle.find(tap), .reference = reference.find(tap)}};
    values[largest] += static_cast<float>(128 * harness::element_noise(comparison, largest));
  });
}

std::vector<Corruption> corruptions() {
  std::vector<Corruption> all;
  for (const char* tap :
       {"layers.0.attn.out", "layers.1.moe.routed", "layers.1.q_latent", "logits"}) {
    const std::string name = tap;
    all.push_back({"largest element moved, " + name, name,
                   [name](const MutantCase& c, Trace& t) { move_largest(c, t, name); }});
    all.push_back({"one row scaled 1.01, " + name, name, [name](const MutantCase&, Trace& t) {
                     change(t, name, [](std::span<float> v, int64_t width) {
                       for (int64_t i = 0; i < width; ++i) v[kRow * width + i] *= 1.01f;
                     });
                   }});
    all.push_back({"two rows swapped, " + name, name, [name](const MutantCase&, Trace& t) {
                     change(t, name, [](std::span<float> v, int64_t width) {
                       std::swap_ranges(v.begin() + kRow * width, v.begin() + (kRow + 1) * width,
                                        v.begin() + (kRow + 1) * width);
                     });
                   }});
    all.push_back({"a NaN, " + name, name, [name](const MutantCase&, Trace& t) {
                     change(t, name, [](std::span<float> v, int64_t width) {
                       v[kRow * width] = std::nanf("");
                     });
                   }});
  }
  all.push_back({"one wrong index", "layers.0.topk", [](const MutantCase&, Trace& t) {
                   HostTensor topk = copy_of(t, "layers.0.topk");
                   const auto v = topk.data<int32_t>();
                   const int64_t k = topk.shape().back();
                   for (int32_t other = 0;; ++other) {  // a visible key that is not in the set
                     const auto row = v.subspan(kRow * k, k);
                     if (std::find(row.begin(), row.end(), other) != row.end()) continue;
                     row[0] = other;
                     break;
                   }
                   t.put("layers.0.topk", topk);
                 }});
  all.push_back({"one stale layer", "layers.1.attn.out", [](const MutantCase&, Trace& t) {
                   t.put("layers.1.attn.out", *t.find("layers.0.attn.out"));
                 }});
  return all;
}

TEST(Corruption, EachIsCaughtAtItsTap) {
  const MutantCase& c = mutant_case("tiny-wide");
  for (const Corruption& corruption : corruptions()) {
    Trace trace = c.trace({});
    corruption.apply(c, trace);
    Row row = c.judge(corruption.name, corruption.tap, trace);
    row.named = true;  // a corruption has no name
    rows().push_back(row);
    EXPECT_TRUE(row.caught) << corruption.name;
    EXPECT_TRUE(row.right) << corruption.name << ": first tap " << row.first_tap;
  }
}

TEST(Unmutated, TheCleanReferencePassesInEveryCaseOfTheTable) {
  for (const char* name : {"tiny-wide", "tiny-yarn", "tiny-bias", "tiny-square"}) {
    for (const KlStage stage : {KlStage::none, KlStage::warmup, KlStage::sparse}) {
      const MutantCase& c = mutant_case(name, {.lm = stage == KlStage::none, .kl = stage});
      const Row row = c.judge("none", "", c.trace({}));
      EXPECT_FALSE(row.caught) << name << ": " << row.first_tap << " " << row.caught_by;
    }
  }
}

class TableAtTheEnd : public testing::Environment {
  void TearDown() override { print_table(); }
};
const auto* const kTable = testing::AddGlobalTestEnvironment(new TableAtTheEnd);

}  // namespace
}  // namespace dsv32::suites
