#include <algorithm>
#include <optional>

#include "harness/report/html/html.h"
#include "harness/report/text.h"

/// report.html: one file that needs nothing else. Everything foreign goes through html::text.
namespace dsv32::harness {
namespace {

constexpr char kHead[] =
    "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
    "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
    "<meta name=\"color-scheme\" content=\"light dark\">\n"
    "<meta http-equiv=\"Content-Security-Policy\" "
    "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
    "<meta name=\"referrer\" content=\"no-referrer\">\n";

}  // namespace

std::string to_html(const Report& report, const Beside& beside) {
  const std::vector<Group> groups = group_verdicts(report);
  const std::vector<Problem> problems = problems_of(groups);
  std::optional<ReportDiff> diff;
  if (beside.base != nullptr) diff = compare_reports(*beside.base, report);
  const html::Page page{report, groups, problems, diff ? &*diff : nullptr};
  std::string out = kHead;
  out += "<title>dsv32-verify: " + html::text(verdict_word(report)) + "</title>\n<style>" +
         html::style() + "</style>\n</head>\n<body>\n<main>\n";
  for (const auto& part :
       {html::verdict_part, html::defects_part, html::changes_part, html::engines_part,
        html::where_part, html::looks_part, html::decisions_part, html::gradients_part,
        html::training_part, html::answers_part, html::untested_part, html::judged_part,
        html::numbers_part}) {
    out += part(page);
  }
  return out + "</main>\n</body>\n</html>\n";
}

namespace html {

std::string text(std::string_view foreign, size_t max_bytes) {
  return xml_text(foreign, max_bytes);
}

std::string element(const char* tag, const std::string& attributes, const std::string& content) {
  return "<" + std::string(tag) + attributes + ">" + content + "</" + tag + ">";
}

std::string section(const char* id, const char* title, const std::string& content) {
  if (content.empty()) return "";
  return "<section id=\"" + std::string(id) + "\">\n<h2>" + title + "</h2>\n" + content +
         "</section>\n";
}

std::string folded(const std::string& summary, const std::string& content) {
  if (content.empty()) return "";
  return "<details><summary>" + summary + "</summary>\n" + content + "</details>\n";
}

std::string remark(const std::string& sentence) {
  return element("p", " class=\"remark\"", sentence) + "\n";
}

std::string table(const std::vector<std::string>& head, const std::string& rows) {
  if (rows.empty()) return "";
  std::string names;
  for (const std::string& name : head) names += element("th", " scope=\"col\"", name);
  return "<div class=\"tables\"><table class=\"numbers\"><thead><tr>" + names +
         "</tr></thead><tbody>\n" + rows + "</tbody></table></div>\n";
}

std::string table_row(const std::vector<std::string>& cells) {
  std::string row = "<tr>";
  for (size_t i = 0; i < cells.size(); ++i)
    row += i == 0 ? element("th", " scope=\"row\"", cells[i]) : element("td", "", cells[i]);
  return row + "</tr>\n";
}

void Bounded::add(const std::string& block) {
  if (left_out_ > 0 || text_.size() + block.size() > bytes_) {
    ++left_out_;
  } else {
    text_ += block;
  }
}

std::string Bounded::rest() const {
  if (left_out_ == 0) return "";
  return element("p", " class=\"soft\"", std::to_string(left_out_) + " more: see report.json.") +
         "\n";
}

std::string name_of(const Group& group) {
  std::string name = text(group.subject.label, 100) + " in " + text(group.case_name, 80);
  return group.suite.empty() ? name : name + ", " + text(group.suite, 60);
}

namespace {

/// What is wrong, in a line each: the first screen of a small one holds all of it.
std::string problem_list(const Page& page) {
  constexpr size_t kShown = 6;
  if (page.problems.size() < 2) return "";
  std::string items;
  for (size_t i = 0; i < std::min(page.problems.size(), kShown); ++i)
    items += element("li", "", text(page.problems[i].words, 160));
  const std::string list = element("ol", "", items) + "\n";
  if (page.problems.size() <= kShown) return list;
  return list + element("p", "", std::to_string(page.problems.size() - kShown) + " more below.");
}

}  // namespace

std::string verdict_part(const Page& page) {
  const Counts counts = count(page.report.verdicts);
  const ExitCode code = page.report.exit_code();
  const char* look = code == ExitCode::ok ? "pass" : code == ExitCode::parity ? "fail" : "open";
  std::string inside = element("p", " class=\"word\"", text(verdict_word(page.report)));
  inside += element("h1", "", text(verdict_sentence(page.report, page.groups, page.problems), 800));
  inside += problem_list(page);
  if (page.diff != nullptr) inside += element("p", "", text(diff_sentence(*page.diff), 400));
  inside +=
      element("p", " class=\"soft\"",
              text(counts_text(counts)) + ", " + text(counted(page.groups.size(), "subject")) +
                  ". Run: " + element("code", "", text(page.report.command, 600)));
  return "<header class=\"" + std::string(look) + "\">" + inside + "</header>\n";
}

}  // namespace html
}  // namespace dsv32::harness
