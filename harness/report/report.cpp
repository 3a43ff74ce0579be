#include "harness/report/report.h"

#include <algorithm>
#include <system_error>

#include "harness/report/groups.h"
#include "src/io/io.h"

namespace dsv32::harness {

ExitCode Report::exit_code() const {
  const Counts counts = count(verdicts);
  const auto blames = [](const Finding& f) { return f.fault != Fault::none; };
  if (counts.fail > 0 || std::any_of(findings.begin(), findings.end(), blames)) {
    return ExitCode::parity;
  }
  if (counts.executed() == 0 || counts.vacuous > 0 || counts.missing > 0) return ExitCode::nothing;
  return ExitCode::ok;
}

void write_report(const Report& report, const std::filesystem::path& directory) {
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
  io::write_files({{directory / kReportMarkdown, to_markdown(report)},
                   {directory / kReportJunit, to_junit(report)},
                   {directory / kReportJson, to_json(report)}});
}

}  // namespace dsv32::harness
