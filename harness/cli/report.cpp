#include <iostream>

#include "harness/cli/commands.h"
#include "harness/report/diff.h"
#include "harness/report/text.h"
#include "src/io/io.h"
#include "src/log/log.h"

/// `report render|validate|diff`: reports that were written before.
namespace dsv32::harness {
namespace {

Report read_report(const std::string& path) { return parse_report(io::read_file(path), path); }

}  // namespace

ExitCode report_render_command(const Options& options) {
  probe_outputs(options);
  std::optional<Report> base;
  if (options.base_report) base = read_report(*options.base_report);
  return write_renderings(read_report(options.arguments.front()), options, base ? &*base : nullptr);
}

ExitCode report_validate_command(const Options& options) {
  ExitCode code = ExitCode::ok;
  for (const std::string& path : options.arguments) {
    try {
      const Report report = validated_report(io::read_file(path), path);
      std::cout << printable(path) << ": valid, schema " << kReportSchemaVersion << ", exit "
                << static_cast<int>(report.exit_code()) << "\n";
    } catch (const Error& error) {
      log_error(error.what());
      code = worst(code, error.code());
    }
  }
  return code;
}

ExitCode report_diff_command(const Options& options) {
  probe_outputs(options);
  const ReportDiff diff =
      compare_reports(read_report(options.arguments[0]), read_report(options.arguments[1]));
  if (options.markdown) io::write_file(*options.markdown, diff_markdown(diff));
  if (!options.markdown || !io::is_standard_output(*options.markdown)) std::cout << diff_text(diff);
  if (diff.common == 0) return ExitCode::nothing;
  const bool fails = diff.worse() || (options.fail_on == "any" && diff.after_fails);
  return fails ? ExitCode::parity : ExitCode::ok;
}

}  // namespace dsv32::harness
