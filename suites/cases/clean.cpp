// The judge must stay silent on correct variants: 300 clean runs over seeds, cases and variants, no
// false alarm.

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <map>

#include "harness/cases/case_run.h"
#include "src/io/io.h"
#include "src/reference/reference.h"
#include "suites/kit/case_report.h"

namespace dsv32::suites {
namespace {

using harness::CaseRun;
using harness::JudgedTrace;
using harness::Verdict;

/// A correct way to compute the same function.
struct Variant {
  std::string name;
  DType dtype = DType::float32;
  std::function<void(Dialect&)> change = [](Dialect&) {};
  int threads = 0;  // 0: as it is
  bool one_row_at_a_time = false;
};

std::vector<Variant> variants() {
  return {
      {.name = "same"},
      {.name = "split sums 2", .change = [](Dialect& d) { d.linear.split_k = 2; }},
      {.name = "split sums 7", .change = [](Dialect& d) { d.linear.split_k = 7; }},
      {.name = "absorbed", .change = [](Dialect& d) { d.attention.absorbed = true; }},
      {.name = "hadamard", .change = [](Dialect& d) { d.indexer.hadamard = Hadamard::both; }},
      {.name = "absorbed, hadamard, split sums 4",
       .change =
           [](Dialect& d) {
             d.attention.absorbed = true;
             d.indexer.hadamard = Hadamard::both;
             d.linear.split_k = 4;
           }},
      {.name = "one thread", .threads = 1},
      {.name = "two threads", .threads = 2},
      {.name = "one row at a time", .one_row_at_a_time = true},
      {.name = "bfloat16", .dtype = DType::bfloat16},
      {.name = "bfloat16, split sums 3",
       .dtype = DType::bfloat16,
       .change = [](Dialect& d) { d.linear.split_k = 3; }},
      {.name = "bfloat16, absorbed",
       .dtype = DType::bfloat16,
       .change = [](Dialect& d) { d.attention.absorbed = true; }},
      {.name = "float16", .dtype = DType::float16},
      {.name = "float64",
       .dtype = DType::float64,
       .change = [](Dialect& d) { d.linear.split_k = 2; }},
  };
}

Batch row_of(const Batch& batch, int64_t b) {
  const auto cut = [&](const std::vector<int64_t>& v) {
    return std::vector<int64_t>(v.begin() + b * batch.S, v.begin() + (b + 1) * batch.S);
  };
  Batch row = batch;
  row.B = 1;
  row.input_ids = cut(batch.input_ids);
  row.attention_mask = cut(batch.attention_mask);
  row.position_ids = cut(batch.position_ids);
  row.labels = cut(batch.labels);
  return row;
}

/// Joins the forward taps of single rows along the batch axis; loss and gradients depend on the
/// whole batch.
Trace join_rows(const std::vector<Trace>& rows) {
  Trace joined;
  for (const std::string& name : rows.front().names()) {
    const HostTensor& first = *rows.front().find(name);
    if (first.shape().empty()) continue;
    std::vector<double> values;
    for (const Trace& row : rows) {
      const std::vector<double> part = row.find(name)->to_doubles();
      values.insert(values.end(), part.begin(), part.end());
    }
    Shape shape = first.shape();
    shape[0] = static_cast<int64_t>(rows.size());
    joined.put(name, HostTensor::from_doubles(first.dtype(), shape, values));
  }
  return joined;
}

Trace run_variant(const CaseRun& run, const Variant& variant) {
  RunOptions options{.dtype = variant.dtype, .backward = run.backward()};
  variant.change(options.dialect);
  if (!variant.one_row_at_a_time) return run.run(options, variant.name);
  options.backward = false;
  const auto model = reference::make_reference(run.the_case().config, run.weights());
  std::vector<Trace> rows;
  for (int64_t b = 0; b < run.batch().B; ++b)
    rows.push_back(model->run(row_of(run.batch(), b), options));
  return join_rows(rows);
}

/// The largest value of each metric over all clean runs: how far the limits are from crying wolf.
struct Largest {
  double measured = 0, limit = 0;
  std::string where;
};
using Extremes = std::map<std::string, Largest>;

std::string family_of(const Verdict& verdict, DType dtype) {
  const auto tap = parse_tap(verdict.tap);
  if (!tap) return "check";
  const TapKind kind = tap->info.kind;
  const char* family =
      kind == TapKind::gradient                                                        ? "gradient"
      : kind == TapKind::attention || kind == TapKind::scores || kind == TapKind::keys ? "keys"
      : kind == TapKind::scalar                                                        ? "scalar"
      : tap->info.is_decision()                                                        ? "decision"
                                                                                       : "token";
  return std::string(to_string(verdict.mode)) + " " + family +
         (item_size(dtype) == 2 ? " 16-bit " : " ");
}

void note_extremes(const std::vector<Verdict>& verdicts, DType dtype, const std::string& where,
                   Extremes& extremes) {
  for (const Verdict& verdict : verdicts) {
    for (const harness::Measure& m : verdict.measures) {
      Largest& largest = extremes[family_of(verdict, dtype) + m.metric];
      if (m.measured <= largest.measured) continue;
      largest = {m.measured, m.limit, where + " " + verdict.tap};
    }
  }
}

void print(const Extremes& extremes) {
  std::printf("%-40s %10s %10s  %s\n", "check", "largest", "limit", "where");
  for (const auto& [name, largest] : extremes) {
    std::printf("%-40s %10.3g %10.3g  %s\n", name.c_str(), largest.measured, largest.limit,
                largest.where.c_str());
  }
}

std::string false_alarm(const CaseRun& run, const Variant& variant, Extremes& extremes) {
  const Trace trace = run_variant(run, variant);
  const JudgedTrace judged{
      .subject = {.label = variant.name}, .dtype = variant.dtype, .trace = &trace, .is_file = true};
  const std::vector<Verdict> verdicts = run.judge_subject(judged);
  note_extremes(verdicts, variant.dtype,
                run.the_case().name + " seed " + std::to_string(run.the_case().seed), extremes);
  const Verdict* failure = harness::first_failure(verdicts);
  return failure == nullptr ? "" : complaints({*failure});
}

/// DSV32_CLEAN_RUNS: how many runs; the nightly job asks for more.
int asked_runs() {
  constexpr int kRuns = 300;
  const char* asked = std::getenv("DSV32_CLEAN_RUNS");
  return asked == nullptr ? kRuns : std::max(1, std::atoi(asked));
}

TEST(Clean, NoFalseAlarmOnCorrectVariants) {
  const std::vector<Variant> all = variants();
  const std::vector<std::string> cases = {"tiny-wide", "tiny-yarn", "tiny", "tiny-bias",
                                          "tiny-square"};
  int alarms = 0;
  Extremes extremes;
  const int runs = asked_runs();
  for (int i = 0; i < runs; ++i) {
    Case c = io::find_case(cases[i % cases.size()]);
    c.seed = 1 + static_cast<uint64_t>(i);
    const Variant& variant = all[i % all.size()];
    const std::string alarm =
        false_alarm(CaseRun(c, true, {.threads = variant.threads}), variant, extremes);
    if (alarm.empty()) continue;
    ++alarms;
    ADD_FAILURE() << c.name << " seed " << c.seed << " " << variant.name << ": " << alarm;
  }
  print(extremes);
  std::printf("%d clean runs, %d false alarms\n", runs, alarms);
}

}  // namespace
}  // namespace dsv32::suites
