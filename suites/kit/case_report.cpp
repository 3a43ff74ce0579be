#include "suites/kit/case_report.h"

#include <algorithm>
#include <sstream>

#include "harness/job/run_job.h"
#include "harness/training/suite.h"
#include "src/io/io.h"
#include "suites/kit/suite.h"

namespace dsv32::suites {

using harness::Report;
using harness::Trust;
using harness::Verdict;

namespace {

bool is_training(const std::string& suite) {
  const auto& all = harness::training_suites();
  return std::any_of(all.begin(), all.end(),
                     [&](const auto& known) { return known.name == suite; });
}

}  // namespace

const Report& case_report(const std::string& suite, const std::vector<std::string>& impls) {
  static const Report report = [&] {
    harness::Job job;
    const Case& c = io::find_case(suite_case());
    job.suites = {suite};
    job.impls = impls;
    if (is_training(suite)) {
      job.training = {{suite, c}};
    } else {
      job.cases = {c};
    }
    return harness::run_job(job);
  }();
  return report;
}

std::vector<Verdict> verdicts_of(const Report& report, const std::string& subject) {
  std::vector<Verdict> out;
  for (const Verdict& verdict : report.verdicts) {
    if (verdict.subject.label == subject) out.push_back(verdict);
  }
  return out;
}

std::string complaints(const std::vector<Verdict>& verdicts) {
  std::ostringstream text;
  for (const Verdict& v : verdicts) {
    if (v.trust == Trust::pass || v.trust == Trust::skipped) continue;
    text << v.subject.label << " " << v.tap << " (" << to_string(v.mode)
         << "): " << to_string(v.trust) << " " << v.note;
    for (const harness::Measure& m : v.measures)
      text << ", " << m.metric << " " << m.measured << " of " << m.limit;
    text << "\n";
  }
  return text.str();
}

}  // namespace dsv32::suites
