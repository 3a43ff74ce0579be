// The report writers: what people and machines read must follow from the verdicts, whatever text
// the verdicts hold.

#include "harness/report/report.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <map>
#include <regex>
#include <string>

#include "src/io/io.h"

namespace dsv32::harness {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMarkdownBytes = 65536;

const Subject kGolden{.party = Party::golden, .label = "golden"};
const Subject kReference{.party = Party::reference, .label = "reference float32"};
const Subject kNarrow{.party = Party::reference, .label = "reference bfloat16"};
const Subject kFork{.party = Party::candidate, .label = "candidate fork.safetensors"};

Verdict passing(const std::string& tap, Mode mode, double measured) {
  Verdict v;
  v.case_name = "tiny";
  v.subject = kGolden;
  v.tap = tap;
  v.mode = mode;
  v.trust = Trust::pass;
  v.measures = {{"row ratio", measured, 3, "calibrated"}};
  v.checked = 59;
  return v;
}

Verdict with_trust(Trust trust, const std::string& note) {
  Verdict v = passing("layers.0.topk", Mode::exact, 0);
  v.trust = trust;
  v.note = note;
  v.measures.clear();
  return v;
}

Verdict failing() {
  Verdict v = passing("layers.0.ix.q", Mode::staged, 612.345);
  v.subject = kFork;
  v.trust = Trust::fail;
  v.layer = 0;
  v.worst = Worst{.index = {1, 4, 0, 3}, .row = 36, .expected = 0.125, .got = -0.456789};
  v.structure = "one head (3) holds 98 % of the error";
  return v;
}

Report passing_report() {
  Report report;
  report.tool_version = "0.1.0";
  report.command = "dsv32-verify --config tiny";
  report.suites = {"forward", "backward"};
  report.cases = {"tiny"};
  report.environment = {{"torch", "2.11.0"}};
  report.verdicts = {passing("embed", Mode::staged, 0.5),
                     passing("layers.0.ix.q", Mode::staged, 1.83),
                     passing("layers.0.ix.q", Mode::forced, 1.2),
                     passing("grad.lm_head.weight", Mode::forced, 0.3)};
  report.seconds = 96.34;
  return report;
}

Report failing_report() {
  Report report = passing_report();
  report.verdicts.push_back(failing());
  Verdict later = failing();
  later.tap = "layers.0.ix.scores";
  later.measures[0].measured = 1e4;
  report.verdicts.push_back(later);
  report.findings = {
      {.case_name = "tiny",
       .subject = kFork,
       .fault = Fault::candidate,
       .first_tap = "layers.0.ix.q",
       .headline = "FAIL: first divergence layers.0.ix.q (staged), 612x the reference error",
       .causes = {"indexer RoPE rotates interleaved pairs instead of halves"}}};
  report.not_tested = {"medium: no golden"};
  report.warnings = {"config.json: unknown field `foo`"};
  return report;
}

Verdict of_suite(const std::string& suite, const Subject& subject, const std::string& check) {
  Verdict v = passing(check, Mode::forced, 1.5);
  v.suite = suite;
  v.subject = subject;
  return v;
}

/// A model part that passes, and a training suite of the same case in which one check fails.
Report training_report() {
  Report report = passing_report();
  report.suites.push_back("loss_descent");
  report.verdicts.push_back(of_suite("loss_descent", kGolden, "step.0.loss"));
  report.verdicts.push_back(of_suite("loss_descent", kReference, "step.0.loss"));
  Verdict red = of_suite("loss_descent", kReference, "step.7.loss");
  red.trust = Trust::fail;
  red.measures[0].measured = 6;
  report.verdicts.push_back(red);
  report.findings = {{.case_name = "tiny",
                      .subject = kReference,
                      .fault = Fault::reference,
                      .first_tap = "step.7.loss",
                      .suite = "loss_descent"}};
  report.figures = {{"tiny", "loss_descent", "final loss", 4.21}};
  report.costs = {{.case_name = "tiny", .seconds = 90},
                  {"tiny", "loss_descent", 3.2, 1030, 0.61},
                  {"tiny", "sharded", 7, 0, 0}};
  return report;
}

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

size_t count_lines(const std::string& text) { return std::count(text.begin(), text.end(), '\n'); }

std::string last_line(const std::string& text) {
  const size_t end = text.size() - 1;
  return text.substr(text.rfind('\n', end - 1) + 1, end - text.rfind('\n', end - 1) - 1);
}

// --- exit codes ---------------------------------------------------------------------------------

TEST(SelfReportExit, PassesWhenEveryCheckPassed) {
  EXPECT_EQ(passing_report().exit_code(), ExitCode::ok);
}

TEST(SelfReportExit, NothingCheckedIsNotGreen) {
  EXPECT_EQ(Report{}.exit_code(), ExitCode::nothing);
  Report skipped;
  skipped.verdicts = {with_trust(Trust::skipped, "absent from the file")};
  EXPECT_EQ(skipped.exit_code(), ExitCode::nothing);
}

TEST(SelfReportExit, VacuousAndMissingAreNotGreen) {
  for (const Trust trust : {Trust::vacuous, Trust::missing}) {
    Report report = passing_report();
    report.verdicts.push_back(with_trust(trust, "why"));
    EXPECT_EQ(report.exit_code(), ExitCode::nothing) << to_string(trust);
  }
}

TEST(SelfReportExit, SkippedDoesNotChangeAPass) {
  Report report = passing_report();
  report.verdicts.push_back(with_trust(Trust::skipped, "absent from the file"));
  EXPECT_EQ(report.exit_code(), ExitCode::ok);
}

TEST(SelfReportExit, FailureStandsAboveVacuousAndMissing) {
  Report report = failing_report();
  report.verdicts.push_back(with_trust(Trust::vacuous, "why"));
  report.verdicts.push_back(with_trust(Trust::missing, "why"));
  EXPECT_EQ(report.exit_code(), ExitCode::parity);
}

TEST(SelfReportExit, OneFailedCheckIsAFailure) {
  Report report = passing_report();
  report.verdicts.push_back(failing());
  EXPECT_EQ(report.exit_code(), ExitCode::parity);
}

TEST(SelfReportExit, NamedFaultIsAFailure) {
  Report report = passing_report();
  report.findings = {{"tiny", kFork, Fault::configuration, "", "", {}}};
  EXPECT_EQ(report.exit_code(), ExitCode::parity);
}

// --- terminal -----------------------------------------------------------------------------------

TEST(SelfReportTerminal, SaysAPassInTwoLines) {
  EXPECT_EQ(
      to_terminal(passing_report(), false, false),
      "tiny  golden vs oracle  PASS     2 taps, 1 gradient  worst layers.0.ix.q 0.61 of limit\n"
      "PASS | 4 checks | 96.3 s | dsv32-verify --config tiny\n");
}

TEST(SelfReportTerminal, TellsTheFirstDivergence) {
  const std::string text = to_terminal(failing_report(), false, false);
  for (const char* part :
       {"FAIL     2 taps, 2 failures",
        "finding   FAIL: first divergence layers.0.ix.q (staged), 612x the reference error",
        "first     layers.0.ix.q (staged): row ratio 612 (limit 3)", "op        reads q_latent",
        "worst     [1,4,0,3] (batch 1, token 4, head 0, lane 3): expected 0.125, got -0.457",
        "structure one head (3) holds 98 % of the error",
        "cause     indexer RoPE rotates interleaved pairs instead of halves", "at fault  candidate",
        "also      layers.0.ix.scores (staged): row ratio 1e+04 (limit 3)",
        "repro     dsv32-verify --config tiny -k 'tiny/candidate fork.safetensors/layers.0.ix.q'",
        "warning: config.json: unknown field `foo`", "not tested: medium: no golden"}) {
    EXPECT_TRUE(holds(text, part)) << part << "\nin\n" << text;
  }
  EXPECT_EQ(last_line(text), "FAIL | 2 of 6 checks failed | 96.3 s | dsv32-verify --config tiny");
}

TEST(SelfReportTerminal, TheFindingDecidesWhichFailureIsFirst) {
  Report report = failing_report();
  report.findings[0].first_tap = "layers.0.ix.scores";
  EXPECT_TRUE(holds(to_terminal(report, false, false), "first     layers.0.ix.scores (staged)"));
}

TEST(SelfReportTerminal, TellsWhyItIsNotGreen) {
  Report report = passing_report();
  report.verdicts.push_back(with_trust(Trust::vacuous, "no row sees more than index_topk keys"));
  const std::string text = to_terminal(report, false, false);
  EXPECT_TRUE(holds(text, "VACUOUS")) << text;
  EXPECT_TRUE(holds(text, "vacuous   1: no row sees more than index_topk keys (layers.0.topk)"))
      << text;
  EXPECT_EQ(last_line(text),
            "NOT GREEN | 4 checks, 1 vacuous | 96.3 s | dsv32-verify --config tiny");
  EXPECT_TRUE(holds(to_terminal(Report{}, false, false), "NOTHING CHECKED | 0 checks"));
}

TEST(SelfReportTerminal, LeavesOutSubjectsWithoutChecksAndNews) {
  Report report = passing_report();
  report.findings = {{"tiny", kReference, Fault::none, "", "", {}}};
  EXPECT_FALSE(holds(to_terminal(report, false, false), "reference float32"));
  report.findings[0].headline = "crashed while loading";
  EXPECT_TRUE(holds(to_terminal(report, false, false), "reference float32"));
}

TEST(SelfReportTerminal, ShowsEveryTapInExecutionOrderWhenVerbose) {
  const std::string text = to_terminal(passing_report(), false, true);
  const size_t later = text.find("staged  layers.0.ix.q"), first = text.find("staged  embed");
  ASSERT_NE(later, std::string::npos) << text;
  EXPECT_LT(first, later);
  EXPECT_LT(later, text.find("forced  layers.0.ix.q"));
}

TEST(SelfReportTerminal, ShowsTheEnvironmentWhenVerbose) {
  EXPECT_TRUE(holds(to_terminal(passing_report(), false, true), "torch: 2.11.0\n"));
  EXPECT_FALSE(holds(to_terminal(passing_report(), false, false), "torch"));
}

/// Twelve cases with three subjects each.
Report many_passing() {
  Report report = passing_report();
  report.verdicts.clear();
  for (int c = 0; c < 12; ++c) {
    for (const Subject& subject : {kGolden, kReference, kNarrow}) {
      Verdict v = passing("embed", Mode::staged, 1);
      v.case_name = "case" + std::to_string(c);
      v.subject = subject;
      report.verdicts.push_back(v);
    }
  }
  return report;
}

TEST(SelfReportTerminal, StaysShortForManyPassingCases) {
  EXPECT_EQ(count_lines(to_terminal(many_passing(), false, false)), 13u);
}

TEST(SelfReportTerminal, TellsOnceForAllCasesWhyChecksWereSkipped) {
  Report report = many_passing();
  for (const char* name : {"case3", "case4"}) {
    Verdict v = with_trust(Trust::skipped, "inside a fused kernel");
    v.case_name = name;
    report.verdicts.push_back(v);
  }
  const std::string text = to_terminal(report, false, false);
  EXPECT_EQ(count_lines(text), 14u) << text;
  EXPECT_TRUE(holds(text, "3 subjects, 3 checks, 1 skipped")) << text;
  EXPECT_TRUE(holds(text, "skipped: 2 checks: inside a fused kernel\n")) << text;
}

TEST(SelfReportTerminal, ColorsOnlyWhenAsked) {
  EXPECT_FALSE(holds(to_terminal(failing_report(), false, true), "\x1b"));
  EXPECT_TRUE(holds(to_terminal(failing_report(), true, false), "\x1b[1;31mFAIL\x1b[0m"));
}

TEST(SelfReportTerminal, NanIsTheWorst) {
  Report report = passing_report();
  Verdict nan = passing("layers.0.q_nope", Mode::staged, std::nan(""));
  nan.trust = Trust::fail;
  report.verdicts.push_back(nan);
  const std::string text = to_terminal(report, false, false);
  EXPECT_TRUE(holds(text, "worst layers.0.q_nope beyond an exact limit or not a number")) << text;
  EXPECT_TRUE(holds(text, "row ratio nan (limit 3)")) << text;
}

TEST(SelfReportTerminal, ShowsATrainingSuiteInRowsOfItsOwn) {
  const std::string text = to_terminal(training_report(), false, false);
  for (const char* part :
       {"tiny  golden vs oracle                           PASS     2 taps, 1 gradient",
        "tiny  loss_descent: golden vs oracle             PASS     1 check",
        "tiny  loss_descent: reference float32 vs oracle  FAIL     2 checks, 1 failure",
        "first     step.7.loss (forced): row ratio 6 (limit 3)",
        "--suite loss_descent -k 'tiny/loss_descent/reference float32/step.7.loss'",
        "figures   final loss 4.21\n",
        "cost      3.2 s, 1.03e+03 tokens per second, 0.61 GiB at its peak\n"}) {
    EXPECT_TRUE(holds(text, part)) << part << "\nin\n" << text;
  }
}

TEST(SelfReportTerminal, WorstIsNeverAGuardThatHolds) {
  Report report = passing_report();
  report.verdicts.push_back(passing("selection.exercised", Mode::exact, 2.99));
  EXPECT_TRUE(holds(to_terminal(report, false, false), "worst layers.0.ix.q 0.61 of limit"));
  report.verdicts.back().measures[0].measured = 4;
  report.verdicts.back().trust = Trust::fail;
  EXPECT_TRUE(holds(to_terminal(report, false, false), "worst selection.exercised 1.33 of limit"));
}

// --- hostile text -------------------------------------------------------------------------------

const std::string kHostile =
    "x\x1b[2J\x1b]0;title\x07\nrm\r\xc2\x9b\x31m\xe2\x80\xae|<script>alert(1)</script>`**b** "
    "[l](http://e.x) "
    "@team #1 \xff\xfe\" ' & ]]> $(id)";

Report hostile_report() {
  Report report = failing_report();
  const Subject subject{.label = kHostile};
  for (Verdict& v : report.verdicts) {
    v.subject = subject;
    v.tap = v.note = v.structure = v.case_name = kHostile;
  }
  for (Finding& f : report.findings) {
    f.subject = subject;
    f.case_name = f.headline = f.first_tap = kHostile;
    f.causes = {kHostile};
  }
  report.warnings = report.not_tested = report.cases = {kHostile};
  report.environment = {{kHostile, kHostile}};
  report.command = kHostile;
  return report;
}

bool has_control(const std::string& text) {
  for (const unsigned char c : text) {
    if ((c < 0x20 && c != '\n') || c == 0x7F) return true;
  }
  return holds(text, "\xc2\x9b") || holds(text, "\xe2\x80\xae") || holds(text, "\xff");
}

TEST(SelfReportHostile, NoControlCharacterReachesTheTerminal) {
  EXPECT_FALSE(has_control(to_terminal(hostile_report(), false, true)));
  EXPECT_FALSE(has_control(to_terminal(hostile_report(), false, false)));
}

TEST(SelfReportHostile, MarkdownHoldsNoForeignMarkup) {
  const std::string text = to_markdown(hostile_report());
  EXPECT_FALSE(has_control(text));
  size_t code = 0;  // inside code spans markup is plain text
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '`' && (i == 0 || text[i - 1] != '\\')) ++code;
    if (code % 2 != 0) continue;
    EXPECT_NE(text.compare(i, 7, "<script"), 0) << text.substr(i, 40);
    EXPECT_NE(text.compare(i, 3, "[l]"), 0) << text.substr(i, 40);
    EXPECT_NE(text.compare(i, 5, "@team"), 0) << text.substr(i, 40);
    EXPECT_NE(text.compare(i, 7, "http://"), 0) << text.substr(i, 40);
  }
  EXPECT_EQ(code % 2, 0u);
}

TEST(SelfReportHostile, ARowOfATableStaysARow) {
  const std::string text = to_markdown(hostile_report());
  const size_t begin = text.find("| Case |"), end = text.find("\n\n", begin);
  ASSERT_NE(begin, std::string::npos);
  size_t bars = 0;
  for (size_t i = text.find('\n', text.find('\n', begin) + 1) + 1; i < end; ++i) {
    bars += text[i] == '|' && text[i - 1] != '\\' ? 1 : 0;
  }
  EXPECT_EQ(bars, 7u) << text.substr(begin, end - begin);
}

TEST(SelfReportHostile, JunitIsEscaped) {
  const std::string text = to_junit(hostile_report());
  EXPECT_FALSE(has_control(text));
  EXPECT_FALSE(holds(text, "<script"));
  EXPECT_FALSE(holds(text, "]]>"));
  EXPECT_TRUE(holds(text, "&lt;script&gt;"));
}

TEST(SelfReportHostile, JsonIsPlainAscii) {
  const std::string text = to_json(hostile_report());
  for (const unsigned char c : text) ASSERT_TRUE((c >= 0x20 && c < 0x7F) || c == '\n') << int{c};
  EXPECT_EQ(parse_report(text, "report").verdicts.size(), hostile_report().verdicts.size());
}

TEST(SelfReportHostile, ReproCommandQuotesForTheShell) {
  Report report = failing_report();
  for (Verdict& v : report.verdicts) v.subject.label = "it's $(id)";
  for (Finding& f : report.findings) f.subject.label = "it's $(id)";
  EXPECT_TRUE(holds(to_terminal(report, false, false), R"(-k 'tiny/it'\''s $(id)/layers.0.ix.q')"));
}

// --- json ---------------------------------------------------------------------------------------

Report odd_report() {
  Report report = failing_report();
  report.verdicts[0].measures[0].measured = std::nan("");
  report.verdicts[1].measures[0].measured = std::numeric_limits<double>::infinity();
  report.verdicts[2].measures[0].limit = -std::numeric_limits<double>::infinity();
  report.verdicts[3].measures[0].measured = 0.1 + 0.2;
  report.verdicts[3].checked = int64_t{1} << 60;
  report.verdicts[3].note = "tab\tquote\" \xc3\xa4 \x1b";
  return report;
}

TEST(SelfReportJson, RoundTripKeepsEveryByte) {
  for (const Report& report :
       {passing_report(), failing_report(), odd_report(), training_report(), Report{}}) {
    const std::string text = to_json(report);
    const Report again = parse_report(text, "report");
    EXPECT_EQ(to_json(again), text);
    EXPECT_EQ(to_markdown(again), to_markdown(report));
    EXPECT_EQ(to_junit(again), to_junit(report));
    EXPECT_EQ(to_html(again), to_html(report));
    EXPECT_EQ(to_terminal(again, false, true), to_terminal(report, false, true));
  }
}

TEST(SelfReportJson, KeepsNumbersExactly) {
  const Report again = parse_report(to_json(odd_report()), "report");
  EXPECT_TRUE(std::isnan(again.verdicts[0].measures[0].measured));
  EXPECT_EQ(again.verdicts[1].measures[0].measured, std::numeric_limits<double>::infinity());
  EXPECT_EQ(again.verdicts[3].measures[0].measured, 0.1 + 0.2);
  EXPECT_EQ(again.verdicts[3].checked, int64_t{1} << 60);
  EXPECT_EQ(again.verdicts[3].note, odd_report().verdicts[3].note);
}

std::string without_times(const std::string& junit) {
  return std::regex_replace(junit, std::regex(" time=\"[0-9.]*\""), "");
}

TEST(SelfReportJson, OnlyTimingDiffersBetweenEqualRuns) {
  Report slow = failing_report();
  slow.seconds = 200;
  slow.costs = {{"tiny", "", 199, 0, 0}};
  const std::string a = to_json(failing_report()), b = to_json(slow);
  EXPECT_EQ(a.substr(0, a.find("\"timing\"")), b.substr(0, b.find("\"timing\"")));
  EXPECT_EQ(to_markdown(failing_report()), to_markdown(slow));
  EXPECT_EQ(to_html(failing_report()), to_html(slow));
  EXPECT_EQ(without_times(to_junit(failing_report())), without_times(to_junit(slow)));
}

void expect_refused(const std::string& json, const std::string& part) {
  try {
    parse_report(json, "r.json");
    ADD_FAILURE() << "accepted: " << json.substr(0, 200);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::artefact);
    EXPECT_TRUE(holds(error.what(), part)) << error.what();
    EXPECT_TRUE(holds(error.what(), "r.json")) << error.what();
  }
}

std::string changed(const std::string& from, const std::string& to) {
  std::string text = to_json(failing_report());
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(SelfReportJson, RefusesWhatIsNotAReport) {
  expect_refused("", "JSON");
  expect_refused("[]", "an object");
  expect_refused("{}", "format");
  expect_refused(std::string(100000, '['), "JSON");
  expect_refused(changed("\"schema_version\": 4", "\"schema_version\": 3"), "schema_version");
  expect_refused(changed("\"trust\":\"pass\"", "\"trust\":\"green\""), "one of pass, fail");
  expect_refused(changed("\"limit\":3.0", "\"limit\":\"3\""), "a number");
  expect_refused(changed("\"party\":\"golden\"", "\"party\":\"silver\""), "one of golden");
  expect_refused(changed("\"checked\":59", "\"checked\":18446744073709551615"), "an integer");
  expect_refused(changed("\"mode\":", "\"mood\":"), "mode");
}

TEST(SelfReportJson, RefusesAnExitCodeThatItsVerdictsDoNotGive) {
  expect_refused(changed("\"exit_code\": 1", "\"exit_code\": 0"), "exit_code");
}

// --- markdown and junit -------------------------------------------------------------------------

TEST(SelfReportMarkdown, HasVerdictTableAndCause) {
  const std::string text = to_markdown(failing_report());
  for (const char* part :
       {"<!-- dsv32-verify report -->\n## dsv32-verify: FAIL\n\ncandidate fork.safetensors is "
        "wrong: "
        "FAIL: first divergence",
        "1. **FAIL: first divergence layers.0.ix.q \\(staged\\), 612x the reference error** "
        "(tiny)\n",
        "2 of 6 checks failed, 2 subjects.", "| First divergence | `layers.0.ix.q` (staged) |",
        "| Size | row ratio 612 \\(limit 3\\) |", "| At fault | candidate |",
        "| Likely cause | indexer RoPE rotates interleaved pairs instead of halves |",
        "| `tiny` | `golden` | PASS | 2 taps, 1 gradient | `layers.0.ix.q` (staged) | 0.61 of "
        "limit |",
        "**Not tested**\n\n- medium: no golden", "exit 1",
        "<details><summary>Failures in detail</summary>\n\n### `tiny`"}) {
    EXPECT_TRUE(holds(text, part)) << part << "\nin\n" << text;
  }
}

TEST(SelfReportMarkdown, HasRowsAndFiguresOfATrainingSuite) {
  const std::string text = to_markdown(training_report());
  for (const char* part :
       {"### `tiny` / `loss_descent` / `reference float32`",
        "| `tiny` | `loss_descent` `golden` | PASS | 1 check | `step.0.loss` (forced) |",
        "**Figures**\n\n- `tiny` / `loss_descent`: final loss 4.21\n"}) {
    EXPECT_TRUE(holds(text, part)) << part << "\nin\n" << text;
  }
}

TEST(SelfReportMarkdown, NeverExceedsItsSize) {
  Report report = hostile_report();
  const std::string huge(100000, '&');
  Verdict v = failing();
  for (int i = 0; i < 100000; ++i) {
    v.subject.label = "s" + std::to_string(i % 500) + kHostile;
    v.trust = static_cast<Trust>(i % 5);
    v.note = huge.substr(0, 300) + std::to_string(i);
    report.verdicts.push_back(v);
  }
  for (int i = 0; i < 500; ++i) {
    report.findings.push_back(
        {"tiny", {.label = "s" + std::to_string(i)}, Fault::candidate, "", huge, {huge, huge}});
    report.warnings.push_back(huge);
    report.figures.push_back({"tiny", "s" + std::to_string(i), huge, 1});
    report.not_tested.push_back(huge);
    report.environment["key" + std::to_string(i)] = huge;
  }
  report.command = huge;
  const std::string text = to_markdown(report);
  EXPECT_LE(text.size(), kMarkdownBytes);
  EXPECT_GT(text.size(), kMarkdownBytes / 4);
  EXPECT_TRUE(holds(text, "more: see report.json"));
}

TEST(SelfReportJunit, NamesTheTrainingSuite) {
  const std::string text = to_junit(training_report());
  for (const char* part : {"<testsuite name=\"tiny golden\"",
                           "<testsuite name=\"tiny loss_descent reference float32\" tests=\"2\"",
                           "classname=\"tiny.loss_descent.reference float32\" name=\"step.7"}) {
    EXPECT_TRUE(holds(text, part)) << part << "\nin\n" << text;
  }
}

TEST(SelfReportJunit, CountsAndMessages) {
  Report report = failing_report();
  report.verdicts.push_back(with_trust(Trust::skipped, "absent from the file"));
  report.verdicts.push_back(with_trust(Trust::vacuous, "cannot fail"));
  const std::string text = to_junit(report);
  for (const char* part :
       {"<testsuite name=\"tiny golden\" tests=\"6\" failures=\"0\" errors=\"1\" skipped=\"1\" "
        "time=\"0.000\">",
        "<testsuite name=\"tiny candidate fork.safetensors\" tests=\"2\" failures=\"2\" "
        "errors=\"0\" skipped=\"0\" time=\"0.000\">",
        "name=\"layers.0.ix.q (staged)\"><failure type=\"staged\" message=\"row ratio 612 (limit "
        "3)\">",
        "reproduce: dsv32-verify --config tiny -k &apos;tiny/candidate",
        "<skipped message=\"absent from the file\"/>",
        "<error type=\"vacuous\" message=\"cannot fail\"/>"}) {
    EXPECT_TRUE(holds(text, part)) << part << "\nin\n" << text;
  }
  EXPECT_TRUE(holds(to_junit(Report{}), "<error type=\"report\" message=\"no check was executed"));
}

// --- files --------------------------------------------------------------------------------------

/// $DSV32_REPORT_DIR (set by suites/report/schema_test.py, which reads the files), else a directory
/// that goes with the test.
class SelfReportFiles : public testing::Test {
 protected:
  void SetUp() override {
    const char* set = std::getenv("DSV32_REPORT_DIR");
    keep_ = set != nullptr;
    const std::string own = "dsv32_self_report_" + std::to_string(::getpid());
    directory_ = keep_ ? fs::path(set) : fs::path(testing::TempDir()) / own;
    fs::create_directories(directory_);
  }
  void TearDown() override {
    if (!keep_) fs::remove_all(directory_);
  }
  fs::path directory_;
  bool keep_ = false;
};

TEST_F(SelfReportFiles, WritesEveryFile) {
  for (const auto& [name, report] : std::map<std::string, Report>{{"pass", passing_report()},
                                                                  {"fail", failing_report()},
                                                                  {"odd", odd_report()},
                                                                  {"hostile", hostile_report()},
                                                                  {"training", training_report()},
                                                                  {"empty", Report{}}}) {
    const fs::path directory = directory_ / name;
    write_report(report, directory);
    EXPECT_EQ(io::read_file(directory / "report.json"), to_json(report));
    EXPECT_EQ(io::read_file(directory / "report.md"), to_markdown(report));
    EXPECT_EQ(io::read_file(directory / "report.html"), to_html(report));
    EXPECT_EQ(io::read_file(directory / "junit.xml"), to_junit(report));
  }
}

TEST_F(SelfReportFiles, UnwritableDirectoryIsAnEnvironmentError) {
  const fs::path file = directory_ / "a_file";
  io::write_file(file, "x");
  try {
    write_report(passing_report(), file / "below");
    ADD_FAILURE() << "wrote below a file";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::environment) << error.what();
  }
}

}  // namespace
}  // namespace dsv32::harness
