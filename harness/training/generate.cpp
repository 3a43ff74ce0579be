#include "golden/reader/golden.h"
#include "harness/cases/generated.h"
#include "harness/cases/implementations.h"
#include "harness/training/suite.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

/// What is known of one judged side; the golden is its verdicts' subject where it fails.
void add(const GenerateRun& run, const JudgedDecoding& judged, TrainingResult& result) {
  DecodingVerdicts found = run.judge(judged);
  append(result.verdicts, std::move(found.verdicts));
}

void judge_golden(const GenerateRun& run, const Case& c, TrainingResult& result) {
  const std::string name = "generate." + c.name;
  if (!golden::exists(name)) {
    result.verdicts.push_back({.subject = golden_side(),
                               .tap = rule_name("golden.file", "generate"),
                               .trust = Trust::missing,
                               .note = "no golden of this suite and case; make it with golden/make "
                                       "--golden " +
                                       name});
    return;
  }
  const golden::Golden golden = golden::load(name);
  add(run,
      {.subject = golden_side(), .dialect = find_dialect(golden.dialect), .trace = &golden.trace},
      result);
}

void judge_own(const GenerateRun& run, const TrainingJob& job, const std::string& impl, DType dtype,
               TrainingResult& result) {
  if (!cannot_run(impl, job.the_case.config, dtype, job.settings.device).empty()) return;
  const Trace trace = run.decode(impl, {.dtype = dtype, .dialect = job.dialect});
  JudgedDecoding judged{
      .subject = implementation_subject(impl, " " + std::string(to_string(dtype))),
      .dtype = dtype,
      .trace = &trace};
  judged.against_reference = judged.subject.party != Party::reference;
  if (is_narrow(dtype) && rounds_every_op(impl))
    judged.dialect.rounding = RoundingStyle::transformers;
  add(run, judged, result);
}

}  // namespace

TrainingResult judge_generate(const TrainingJob& job) {
  const Case& c = job.the_case;
  const SyntheticWeights weights(c);
  const GenerateRun run(c, make_batch(c), weights, job.settings);
  TrainingResult result;
  judge_golden(run, c, result);
  for (const std::string& impl : job.impls)
    for (const DType dtype : {DType::float32, DType::bfloat16})
      judge_own(run, job, impl, dtype, result);
  return result;
}

}  // namespace dsv32::harness
