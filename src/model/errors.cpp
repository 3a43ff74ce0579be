#include "src/model/errors.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace dsv32 {

namespace {

// Interrupts stand above all: the run did not end by itself.
int precedence(ExitCode code) {
  switch (code) {
    case ExitCode::ok:
      return 0;
    case ExitCode::nothing:
      return 1;
    case ExitCode::parity:
      return 2;
    case ExitCode::environment:
      return 3;
    case ExitCode::artefact:
      return 4;
    case ExitCode::internal:
      return 5;
    case ExitCode::usage:
      return 6;
    case ExitCode::interrupted:
      return 7;
    case ExitCode::terminated:
      return 8;
  }
  return 5;
}

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replace, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

ExitCode worst(ExitCode a, ExitCode b) { return precedence(a) >= precedence(b) ? a : b; }

std::string to_string(const Complaint& complaint) {
  std::string text = complaint.where;
  const auto add = [&text](std::string_view separator, std::string_view part) {
    if (!text.empty()) text += separator;
    text += part;
  };
  if (!complaint.what.empty()) add(": ", complaint.what);
  if (!complaint.expected.empty()) add(": ", "expected " + complaint.expected);
  if (!complaint.got.empty()) {
    add(complaint.expected.empty() ? ": " : ", ", "got " + complaint.got);
  }
  if (!complaint.context.empty()) add(" ", "(" + complaint.context + ")");
  if (!complaint.hint.empty()) add("; ", "hint: " + complaint.hint);
  return text;
}

Error::Error(ExitCode code, Complaint complaint)
    : std::runtime_error(to_string(complaint)), code_(code), complaint_(std::move(complaint)) {}

std::string nearest(const std::string& word, const std::vector<std::string>& known) {
  // Two typing errors, or a third of a long word.
  const size_t allowed = std::max<size_t>(2, word.size() / 3);
  std::string best;
  size_t best_distance = allowed + 1;
  for (const std::string& candidate : known) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < best_distance && distance < candidate.size()) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

}  // namespace dsv32
