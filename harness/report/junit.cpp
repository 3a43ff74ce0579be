#include <algorithm>
#include <cstdio>
#include <sstream>

#include "harness/report/problems.h"
#include "harness/report/report.h"
#include "harness/report/text.h"

/// junit.xml: one suite per case, training suite and subject, one test case per verdict.
namespace dsv32::harness {
namespace {

std::string message_of(const Verdict& v) {
  std::string text;
  for (const Measure& m : v.measures) {
    if (!m.within()) text += (text.empty() ? "" : ", ") + measure_text(m);
  }
  if (!v.note.empty()) text += (text.empty() ? "" : "; ") + printable(v.note);
  return text.empty() ? std::string(to_string(v.trust)) : text;
}

std::string details_of(const Report& report, const Group& group, const Verdict& v) {
  std::string text;
  const auto add = [&](const std::string& label, const std::string& value) {
    if (!value.empty()) text += xml_text(label + ": " + value, 1000) + "\n";
  };
  if (v.worst) add("worst element", worst_text(*v.worst));
  add("structure", v.structure);
  if (group.first_failure == &v) {
    for (const Finding* f : group.findings) {
      add("finding", f->headline);
      for (const std::string& cause : f->causes) add("cause", cause);
    }
  }
  add("reproduce", repro_command(report, v));
  return text;
}

std::string class_of(const Verdict& v) {
  return v.case_name + "." + (v.suite.empty() ? "" : v.suite + ".") + v.subject.label;
}

void add_verdict(std::ostringstream& out, const Report& report, const Group& g, const Verdict& v) {
  const std::string mode(to_string(v.mode)), trust(to_string(v.trust));
  out << "    <testcase classname=\"" << xml_text(class_of(v)) << "\" name=\""
      << xml_text(v.tap + " (" + mode + ")") << "\"";
  if (v.trust == Trust::pass) {
    out << "/>\n";
    return;
  }
  const std::string message = " message=\"" + xml_text(message_of(v), 1000) + "\"";
  out << ">";
  if (v.trust == Trust::skipped) {
    out << "<skipped" << message << "/>";
  } else if (v.trust == Trust::fail) {
    out << "<failure type=\"" << mode << "\"" << message << ">" << details_of(report, g, v)
        << "</failure>";
  } else {  // vacuous, missing and undecided are not green
    out << "<error type=\"" << trust << "\"" << message << "/>";
  }
  out << "</testcase>\n";
}

std::string seconds_text(double seconds) {
  char digits[64];
  constexpr double kMost = 1e9;  // so that whatever a file says is a number
  std::snprintf(digits, sizeof digits, "%.3f", seconds >= 0 && seconds < kMost ? seconds : 0.0);
  return digits;
}

/// Of a training suite its own cost. The model's part of a case is measured as a whole: its first
/// subject carries it.
double seconds_of(const Report& report, const std::vector<Group>& groups, size_t at) {
  const Group& g = groups[at];
  const auto is_part = [&](const Group& other) {
    return other.case_name == g.case_name && other.suite == g.suite;
  };
  if (at > 0 && is_part(groups[at - 1])) return 0;
  double seconds = 0;
  for (const Cost& cost : report.costs) {
    if (cost.case_name != g.case_name) continue;
    if (cost.suite == g.suite) seconds += cost.seconds;
    if (g.suite.empty() && !cost.suite.empty()) seconds -= cost.seconds;
  }
  return std::max(seconds, 0.0);
}

/// What was judged; at the first suite also by whom.
void add_properties(std::ostringstream& out, const Report& report, const Group& g, bool first) {
  FactRows facts;
  if (first) facts = judge_facts(report);
  for (const Provenance& p : report.judged)
    if (p.case_name == g.case_name && p.subject == g.subject)
      facts.insert(facts.end(), p.facts.begin(), p.facts.end());
  if (facts.empty()) return;
  out << "    <properties>\n";
  for (const auto& [name, value] : facts)
    out << "      <property name=\"" << xml_text(name) << "\" value=\"" << xml_text(value, 1000)
        << "\"/>\n";
  out << "    </properties>\n";
}

/// A fault without a failing verdict, or a report that checked nothing, must be seen as well.
void add_error(std::ostringstream& out, const std::string& name, const std::string& message) {
  out << "    <testcase classname=\"report\" name=\"" << xml_text(name)
      << "\"><error type=\"report\" message=\"" << xml_text(message, 1000) << "\"/></testcase>\n";
}

void open_suite(std::ostringstream& out, const std::string& name, const Counts& c, size_t errors,
                double seconds) {
  const size_t tests = c.executed() + c.undecided + c.vacuous + c.missing + c.skipped + errors;
  out << "  <testsuite name=\"" << xml_text(name) << "\" tests=\"" << tests << "\" failures=\""
      << c.fail << "\" errors=\"" << c.undecided + c.vacuous + c.missing + errors << "\" skipped=\""
      << c.skipped << "\" time=\"" << seconds_text(seconds) << "\">\n";
}

void add_group(std::ostringstream& out, const Report& report, const std::vector<Group>& groups,
               size_t at) {
  const Group& g = groups[at];
  const bool unproven = g.failed() && g.counts.fail == 0;
  const auto blames = [](const Finding* f) { return f->fault != Fault::none; };
  const size_t faults = std::count_if(g.findings.begin(), g.findings.end(), blames);
  const std::string suite = g.suite.empty() ? "" : g.suite + " ";
  open_suite(out, g.case_name + " " + suite + g.subject.label, g.counts, unproven ? faults : 0,
             seconds_of(report, groups, at));
  add_properties(out, report, g, at == 0);
  for (const Verdict* v : g.verdicts) add_verdict(out, report, g, *v);
  for (const Finding* f : g.findings) {
    if (unproven && f->fault != Fault::none) {
      add_error(out, "finding", std::string(to_string(f->fault)) + ": " + f->headline);
    }
  }
  out << "  </testsuite>\n";
}

}  // namespace

std::string to_junit(const Report& report) {
  std::ostringstream out;
  out << "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"dsv32-verify\" time=\""
      << seconds_text(report.seconds) << "\">\n";
  const std::vector<Group> groups = group_verdicts(report);
  for (size_t i = 0; i < groups.size(); ++i) add_group(out, report, groups, i);
  if (count(report.verdicts).executed() == 0) {
    open_suite(out, "report", {}, 1, 0);
    add_error(out, "nothing checked", "no check was executed: " + report.command);
    out << "  </testsuite>\n";
  }
  out << "</testsuites>\n";
  return out.str();
}

}  // namespace dsv32::harness
