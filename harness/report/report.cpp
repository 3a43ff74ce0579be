#include "harness/report/report.h"

#include <algorithm>
#include <system_error>

#include "src/io/io.h"

namespace dsv32::harness {

void Counts::add(Trust trust) {
  switch (trust) {
    case Trust::pass:
      ++pass;
      return;
    case Trust::fail:
      ++fail;
      return;
    case Trust::undecided:
      ++undecided;
      return;
    case Trust::vacuous:
      ++vacuous;
      return;
    case Trust::missing:
      ++missing;
      return;
    case Trust::skipped:
      ++skipped;
      return;
  }
}

Counts count(const std::vector<Verdict>& verdicts) {
  Counts counts;
  for (const Verdict& v : verdicts) counts.add(v.trust);
  return counts;
}

ExitCode Report::exit_code() const {
  const Counts counts = count(verdicts);
  const auto blames = [](const Finding& f) { return f.fault != Fault::none; };
  if (counts.fail > 0 || std::any_of(findings.begin(), findings.end(), blames)) {
    return ExitCode::parity;
  }
  const bool weak = counts.vacuous > 0 || counts.missing > 0 || counts.undecided > 0;
  if (counts.executed() == 0 || weak) return ExitCode::nothing;
  return ExitCode::ok;
}

void write_report(const Report& report, const std::filesystem::path& directory,
                  const Beside& beside) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error || !std::filesystem::is_directory(directory, error)) {
    throw Error(ExitCode::environment, {.where = directory.string(),
                                        .what = "report directory",
                                        .expected = "a directory that can be written",
                                        .got = error ? error.message() : "not a directory",
                                        .hint = "name another one with --out"});
  }
  // The truth last: whoever finds report.json finds its renderings too.
  io::write_files({{directory / kReportMarkdown, to_markdown(report, beside)},
                   {directory / kReportHtml, to_html(report, beside)},
                   {directory / kReportJunit, to_junit(report)},
                   {directory / kReportJson, to_json(report)}});
}

}  // namespace dsv32::harness
