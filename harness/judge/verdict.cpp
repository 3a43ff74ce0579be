#include "harness/judge/verdict.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

namespace dsv32::harness {

std::string_view to_string(Trust trust) {
  switch (trust) {
    case Trust::pass:
      return "pass";
    case Trust::fail:
      return "fail";
    case Trust::vacuous:
      return "vacuous";
    case Trust::missing:
      return "missing";
    case Trust::skipped:
      return "skipped";
    case Trust::undecided:
      return "undecided";
  }
  return "unknown";
}

std::string_view to_string(Mode mode) {
  switch (mode) {
    case Mode::staged:
      return "staged";
    case Mode::forced:
      return "forced";
    case Mode::free:
      return "free";
    case Mode::exact:
      return "exact";
  }
  return "unknown";
}

std::string_view to_string(Party party) {
  switch (party) {
    case Party::golden:
      return "golden";
    case Party::reference:
      return "reference";
    case Party::optimized:
      return "optimized";
    case Party::candidate:
      return "candidate";
  }
  return "unknown";
}

std::string_view to_string(Against against) {
  switch (against) {
    case Against::oracle:
      return "oracle";
    case Against::golden:
      return "golden";
    case Against::trace:
      return "trace";
  }
  return "unknown";
}

std::string_view to_string(Fault fault) {
  switch (fault) {
    case Fault::none:
      return "none";
    case Fault::candidate:
      return "candidate";
    case Fault::optimized:
      return "optimized";
    case Fault::reference:
      return "reference";
    case Fault::golden:
      return "golden";
    case Fault::configuration:
      return "configuration";
  }
  return "unknown";
}

void settle(Verdict& verdict) {
  for (const Measure& measure : verdict.measures)
    if (!measure.within()) verdict.trust = Trust::fail;
}

Verdict exact_check(const Subject& subject, const std::string& name, double wrong,
                    const std::string& basis, int64_t checked, const std::string& note) {
  Verdict verdict;
  verdict.subject = subject;
  verdict.tap = name;
  verdict.mode = Mode::exact;
  verdict.checked = checked;
  verdict.note = note;
  verdict.measures.push_back({"exact", wrong, 0, basis});
  settle(verdict);
  return verdict;
}

void append(std::vector<Verdict>& to, std::vector<Verdict> from) {
  std::move(from.begin(), from.end(), std::back_inserter(to));
}

int shade_of(double share) {
  constexpr double kSteps = 9;
  if (std::isnan(share)) return static_cast<int>(kSteps);
  if (share <= 0) return 0;
  return static_cast<int>(std::clamp(std::ceil(2 * std::log10(share)) + 1, 0.0, kSteps));
}

std::string check_path(const Verdict& verdict) {
  const std::string suite = verdict.suite.empty() ? "" : verdict.suite + "/";
  return verdict.case_name + "/" + suite + verdict.subject.label + "/" + verdict.tap;
}

double Measure::margin() const {
  if (std::isnan(measured)) return std::numeric_limits<double>::infinity();
  if (limit > 0) return measured / limit;
  return measured > 0 ? std::numeric_limits<double>::infinity() : 0;
}

double Verdict::margin() const {
  double largest = 0;
  for (const Measure& measure : measures) largest = std::max(largest, measure.margin());
  return largest;
}

}  // namespace dsv32::harness
