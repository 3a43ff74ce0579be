#include "harness/job/job_estimate.h"

#include <algorithm>

#include "harness/job/streaming.h"
#include "src/io/io.h"

namespace dsv32::harness {
namespace {

Case with_batch(const Job& job, Case c) {
  if (!job.batch_file) return c;
  const Batch batch = io::read_batch(*job.batch_file, c.config);
  c.B = batch.B, c.S = batch.S;
  return c;
}

Estimate streaming_estimate(const Job& job, const Case& c) {
  const StreamingWork work = streaming_work(job, c);
  return {.bytes = work.bytes(), .flops = work.flops(), .seconds = work.seconds()};
}

Estimate model_estimate(const Job& job, const Case& c) {
  if (is_streamed(job, c)) return streaming_estimate(job, c);
  const auto asked = [&](const char* suite) {
    return std::find(job.suites.begin(), job.suites.end(), suite) != job.suites.end();
  };
  constexpr double kGolden = 1;
  const double judged = static_cast<double>(job.impls.size() * job.dtypes.size()) + kGolden +
                        static_cast<double>(job.candidates.size());
  return judging_estimate(c, judged, asked("forward"), asked("backward"));
}

}  // namespace

Estimate estimate_of(const Job& job) {
  Estimate sum;
  const auto add = [&](const Estimate& estimate) {
    sum.bytes = std::max(sum.bytes, estimate.bytes);
    sum.flops += estimate.flops;
    sum.seconds += expected_seconds(estimate);
  };
  for (const Case& c : job.cases) add(model_estimate(job, with_batch(job, c)));
  for (const TrainingTask& task : job.training) add(training_estimate(task.the_case));
  return sum;
}

std::string dry_run_text(const Job& job) {
  std::string text;
  for (const Case& listed : job.cases) {
    const Case c = with_batch(job, listed);
    text += "case " + c.name + ": B " + std::to_string(c.B) + ", S " + std::to_string(c.S) + "\n";
    if (is_streamed(job, c)) text += streaming_table(streaming_work(job, c));
  }
  return text + described(estimate_of(job)) + "\n";
}

}  // namespace dsv32::harness
