#include <algorithm>

#include "harness/report/problems.h"
#include "harness/report/report.h"
#include "harness/report/text.h"

/// Workflow commands of a forge. A forge shows ten of a kind for a step; ours are the first ten
/// problems.
namespace dsv32::harness {
namespace {

constexpr size_t kMost = 10;

std::string replaced(const std::string& text, std::string_view special) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    if (special.find(c) == std::string_view::npos) {
      out += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      out += {'%', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return out;
}

/// printable: no line of a stranger begins a command of its own.
std::string command(const char* level, const std::string& title, const std::string& message) {
  return "::" + std::string(level) + " title=" + replaced(printable(title, 120), "%:,\r\n") +
         "::" + replaced(printable(message, 1000), "%\r\n") + "\n";
}

std::string message_of(const Report& report, const Problem& problem) {
  std::string text = problem.words;
  if (!problem.severity.empty()) text += ": " + problem.severity;
  text += " | " + places_text(problem.groups, 4);
  if (problem.verdict != nullptr) text += " | " + repro_command(report, *problem.verdict);
  return text;
}

}  // namespace

std::string to_annotations(const Report& report) {
  const std::vector<Group> groups = group_verdicts(report);
  const std::vector<Problem> problems = problems_of(groups);
  std::string out;
  for (size_t i = 0; i < std::min(problems.size(), kMost); ++i)
    out += command("error", "dsv32-verify: " + problems[i].finding->subject.label,
                   message_of(report, problems[i]));
  size_t open = 0;
  for (const Group& g : groups) {
    if (g.failed() || g.green() || g.state() == "SKIPPED" || open++ >= kMost) continue;
    out += command("warning", "dsv32-verify: " + g.state(),
                   subject_text(g) + " in " + g.case_name + ": " + counts_text(g.counts));
  }
  if (out.empty())
    out = command(report.exit_code() == ExitCode::ok ? "notice" : "error", "dsv32-verify",
                  verdict_sentence(report, groups, problems));
  return out;
}

}  // namespace dsv32::harness
