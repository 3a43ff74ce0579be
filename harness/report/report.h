#pragma once

#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "harness/judge/answers.h"
#include "harness/judge/verdict.h"

namespace dsv32::harness {

inline constexpr int kReportSchemaVersion = 4;
inline constexpr const char* kReportFormat = "dsv32-verify.report";

/// What a part of the job took.
struct Cost {
  std::string case_name;
  std::string suite;  // a training suite; empty: everything about the case
  double seconds = 0;
  double tokens_per_second = 0;  // 0 where nothing is trained
  double peak_gib = 0;           // of memory; 0 where it was not measured
};

/// One pass of a model through a case, for whatever part of the job needed it.
struct PassCost {
  std::string case_name;
  std::string what;    // "staged oracle"
  int64_t layers = 0;  // forward and backward counted apart
  double seconds = 0;
};

/// What was judged: one subject of one case, in facts that its file holds.
struct Provenance {
  std::string case_name;
  Subject subject;
  std::vector<std::pair<std::string, std::string>> facts;  // "sha256", "transformers", ...
};

/// A report: the only source of truth; every rendering is a function of it.
struct Report {
  std::string tool_version;
  std::string command;  // the repro command; set when the report is delivered
  std::vector<std::string> suites;
  std::vector<std::string> cases;
  /// Who judged: commit, data folder, torch and its arithmetic, device, golden hashes; "other bits
  /// on another run: OP", where an op does not promise them.
  std::map<std::string, std::string> environment;
  std::vector<Provenance> judged;  // candidates and goldens
  std::vector<std::string> warnings;
  std::vector<Verdict> verdicts;
  std::vector<Finding> findings;
  std::vector<Figure> figures;          // in the order of the suites
  std::vector<Answers> answers = {};    // of a user's own batch: how well its labels are predicted
  std::vector<std::string> not_tested;  // one reason a line
  // The only part that may differ between equal runs; `timing` in the file.
  double seconds = 0;  // of the whole job; 0 where it was not measured
  std::vector<Cost> costs;
  std::vector<PassCost> passes = {};  // in the order of their making

  /// docs/architecture.md 4: parity fail 1, vacuous, missing or undecided not green, zero
  /// checks 5.
  ExitCode exit_code() const;
};

/// How many checks ended how.
struct Counts {
  size_t pass = 0, fail = 0, undecided = 0, vacuous = 0, missing = 0, skipped = 0;
  size_t executed() const { return pass + fail; }
  void add(Trust trust);
};
Counts count(const std::vector<Verdict>& verdicts);

std::string to_json(const Report& report);
Report parse_report(const std::string& json, const std::string& where);
/// Grouped by stage, worst tap first, one line of verdict, the repro command. `color`: ANSI.
/// As parse_report, and refuses whatever else the file holds: unknown fields, counts that its
/// verdicts do not give.
Report validated_report(const std::string& json, const std::string& where);
/// `width`: columns to fit into, at least 20 are used; 0: lines are never broken.
std::string to_terminal(const Report& report, bool color, bool verbose, size_t width = 0);
/// What a rendering is told besides the report.
struct Beside {
  std::string link;              // where the page is, if anywhere
  const Report* base = nullptr;  // of the tree before the change, if there is one
};
/// The comment under a pull request, < 64 KiB: twelve lines for the reviewer, the rest folded.
/// Begins with kCommentMarker, by which a later comment replaces it.
std::string to_markdown(const Report& report, const Beside& beside = {});
/// One page of at most 1 MB: no script, nothing from elsewhere, light and dark.
std::string to_html(const Report& report, const Beside& beside = {});
std::string to_junit(const Report& report);
/// Workflow commands (`::error ...`) that a forge shows beside the change: one for each defect or
/// first failure, one for each group that is not green.
std::string to_annotations(const Report& report);

inline constexpr const char* kCommentMarker = "<!-- dsv32-verify report -->";

/// The files of a report's folder.
inline constexpr const char* kReportMarkdown = "report.md";
inline constexpr const char* kReportHtml = "report.html";
inline constexpr const char* kReportJunit = "junit.xml";
inline constexpr const char* kReportJson = "report.json";
/// All of them into a folder, together or not at all. Throws Error (environment) when it cannot.
void write_report(const Report& report, const std::filesystem::path& directory,
                  const Beside& beside = {});

}  // namespace dsv32::harness
