#pragma once

#include <filesystem>
#include <iosfwd>
#include <map>
#include <string>
#include <vector>

#include "harness/judge/verdict.h"

namespace dsv32::harness {

inline constexpr int kReportSchemaVersion = 3;

/// A report: the only source of truth; every rendering is a function of it.
struct Report {
  std::string tool_version;
  std::string command;  // the repro command
  std::vector<std::string> suites;
  std::vector<std::string> cases;
  /// torch, device, golden hashes; "other bits on another run: OP", where an op does not promise
  /// them.
  std::map<std::string, std::string> environment;
  std::vector<std::string> warnings;
  std::vector<Verdict> verdicts;
  std::vector<Finding> findings;
  std::vector<Figure> figures;          // in the order of the suites
  std::vector<std::string> not_tested;  // one reason a line
  /// Seconds, and what a name says: "CASE SUITE tokens per second", "CASE SUITE peak memory GiB".
  /// The only part that may differ between equal runs.
  std::map<std::string, double> timing;

  /// DESIGN 4: parity fail 1, vacuous in a sparse case or missing not green, zero checks 5.
  ExitCode exit_code() const;
};

/// How many checks ended how.
struct Counts {
  size_t pass = 0, fail = 0, vacuous = 0, missing = 0, skipped = 0;
  size_t executed() const { return pass + fail; }
  void add(Trust trust);
};
Counts count(const std::vector<Verdict>& verdicts);

std::string to_json(const Report& report);
Report parse_report(const std::string& json, const std::string& where);
/// Grouped by stage, worst tap first, one line of verdict, the repro command. `color`: ANSI.
std::string to_terminal(const Report& report, bool color, bool verbose);
std::string to_markdown(const Report& report);  // < 64 KiB
std::string to_junit(const Report& report);

/// report.json, report.md, junit.xml into a directory. Throws Error (environment) when it cannot.
void write_report(const Report& report, const std::filesystem::path& directory);

}  // namespace dsv32::harness
