// The page, the annotations, and lines that fit.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <sstream>
#include <string>

#include "harness/report/engines.h"
#include "harness/report/fit.h"
#include "harness/report/problems.h"
#include "harness/report/report.h"
#include "src/model/errors.h"
#include "suites/report/three_defects.h"

namespace dsv32::harness {
namespace {

// --- problems
// -------------------------------------------------------------------------------------

TEST(SelfReportProblems, TheGravestComesFirst) {
  const Report report = three_defects();
  const std::vector<Group> groups = group_verdicts(report);
  const std::vector<Problem> problems = problems_of(groups);
  ASSERT_EQ(problems.size(), 3u);
  EXPECT_EQ(problems[0].name, "two");
  EXPECT_EQ(problems[1].name, "three");
  EXPECT_EQ(problems[0].verdict->tap, "layers.0.ix.k");
  EXPECT_EQ(problems[0].severity, "logits 50 % off");
  EXPECT_EQ(verdict_sentence(report, groups, problems),
            "candidate fork.safetensors is wrong in 3 ways, the gravest: words of two.");
}

TEST(SelfReportProblems, OneDefectInTwoCasesIsOne) {
  Report report = three_defects();
  Finding more = report.findings.front();
  more.case_name = "tiny-wide";
  more.defects = {defect("two", "layers.0.ix.k", 0.7)};
  report.findings.push_back(more);
  Verdict v = check("layers.0.ix.k", Mode::staged, Trust::fail, 9);
  v.case_name = "tiny-wide";
  report.verdicts.push_back(v);
  const std::vector<Group> groups = group_verdicts(report);
  const std::vector<Problem> problems = problems_of(groups);
  ASSERT_EQ(problems.size(), 3u);
  EXPECT_EQ(problems[0].severity, "logits 70 % off");
  EXPECT_EQ(places_text(problems[0].groups, 5), "tiny-wide, tiny");
  EXPECT_EQ(places_text(problems[0].groups, 1), "tiny-wide and 1 more");
}

TEST(SelfReportProblems, WhatOneCaseCannotTellApartAnotherMay) {
  for (const bool clear_one_first : {true, false}) {
    Report report = three_defects();
    Finding more = report.findings.front();
    more.case_name = "tiny-wide";
    more.defects = {defect("four or two", "layers.0.ix.k", clear_one_first ? 0.7 : 0.3)};
    report.findings.insert(clear_one_first ? report.findings.end() : report.findings.begin(), more);
    Verdict v = check("layers.0.ix.k", Mode::staged, Trust::fail, 9);
    v.case_name = "tiny-wide";
    report.verdicts.insert(clear_one_first ? report.verdicts.end() : report.verdicts.begin(), v);
    const std::vector<Group> groups = group_verdicts(report);
    const std::vector<Problem> problems = problems_of(groups);
    ASSERT_EQ(problems.size(), 3u);
    EXPECT_EQ(problems[0].name, "two");
    EXPECT_EQ(problems[0].words, "words of two");
    EXPECT_EQ(problems[0].groups.size(), 2u);
    EXPECT_EQ(problems[0].severity, clear_one_first ? "logits 70 % off" : "logits 50 % off");
  }
}

TEST(SelfReportProblems, ACrashStandsAboveAllElse) {
  Report report = three_defects();
  const Subject other{.party = Party::candidate, .label = "candidate b"};
  Verdict crash = check("run.finished", Mode::exact, Trust::fail, 1);
  crash.subject = other;
  report.verdicts.push_back(crash);
  report.findings.push_back({.case_name = "tiny",
                             .subject = other,
                             .fault = Fault::candidate,
                             .first_tap = "run.finished",
                             .headline = "crashed in indexer: RuntimeError: x"});
  const std::vector<Group> groups = group_verdicts(report);
  const std::vector<Problem> problems = problems_of(groups);
  EXPECT_EQ(problems.front().words, "crashed in indexer: RuntimeError: x");
  EXPECT_EQ(verdict_sentence(report, groups, problems),
            "candidate b crashed in indexer: RuntimeError: x.");
}

TEST(SelfReportProblems, EachVerdictIsASentence) {
  Report report;
  EXPECT_EQ(verdict_sentence(report, {}, {}), "Nothing was checked.");
  report.verdicts = {check("embed", Mode::staged, Trust::pass, 1)};
  EXPECT_EQ(verdict_sentence(report, group_verdicts(report), {}),
            "Candidate fork.safetensors in case tiny computes the model: each of 1 check is within "
            "rounding.");
  report.verdicts.push_back(check("logits", Mode::free, Trust::undecided, 9));
  EXPECT_TRUE(verdict_sentence(report, group_verdicts(report), {})
                  .starts_with("It cannot be told whether candidate fork.safetensors"));
  report.verdicts.back().trust = Trust::missing;
  EXPECT_TRUE(verdict_sentence(report, group_verdicts(report), {}).starts_with("Not all of "));
  report.verdicts.back().trust = Trust::vacuous;
  EXPECT_TRUE(verdict_sentence(report, group_verdicts(report), {}).starts_with("No check of "));
}

// --- engines
// -------------------------------------------------------------------------------------

/// A second file of the fork of three_defects, which shows one of its defects and passes elsewhere.
Report two_files() {
  Report report = three_defects();
  const Subject other{.party = Party::candidate, .label = "candidate wide.safetensors"};
  report.judged.push_back({"tiny-wide", other, {{"sha256", "beef"}, {"transformers", "5.24.0"}}});
  for (const auto& [tap, trust] : {std::pair{"layers.0.ix.k", Trust::fail},
                                   std::pair{"layers.0.router.logits", Trust::pass}}) {
    Verdict v = check(tap, Mode::staged, trust, trust == Trust::fail ? 9 : 1);
    v.case_name = "tiny-wide";
    v.subject = other;
    report.verdicts.push_back(v);
  }
  report.findings.push_back({.case_name = "tiny-wide",
                             .subject = other,
                             .fault = Fault::candidate,
                             .first_tap = "layers.0.ix.k",
                             .defects = {defect("two", "layers.0.ix.k", 0.7)},
                             .profile = "spec-1 + {two}"});
  return report;
}

TEST(SelfReportEngines, FilesOfOneEngineMakeOneProfile) {
  const Report report = two_files();
  const std::vector<Engine> engines = engines_of(report, group_verdicts(report));
  ASSERT_EQ(engines.size(), 1u);
  const Engine& engine = engines.front();
  EXPECT_EQ(engine.name, "transformers 5.24.0");
  EXPECT_EQ(engine.files, 2u);
  EXPECT_EQ(engine.profile, "spec-1 + {one, three, two}");
  std::map<std::string, std::string> rows;
  for (const ComponentRow& row : engine.rows) rows[row.component] = row.state + ": " + row.evidence;
  EXPECT_EQ(rows.at("indexer"), "FAIL: words of two");
  EXPECT_EQ(rows.at("selection"), "PASS: 1 check in 1 file");
  EXPECT_EQ(rows.at("router"), "PASS: 1 check in 1 file");
  EXPECT_EQ(rows.at("residual stream"), "FAIL: 1 of 1 check in 1 file, by what begins elsewhere");
  EXPECT_EQ(rows.at("gradients"), "NOT TESTED: ");
}

TEST(SelfReportEngines, EveryRenderingShowsThem) {
  const Report report = two_files();
  EXPECT_TRUE(holds(to_terminal(report, false, false),
                    "transformers 5.24.0, 2 files together: spec-1 + {one, three, two}\n"));
  EXPECT_TRUE(holds(to_markdown(report), "| indexer | FAIL | words of two |"));
  EXPECT_TRUE(holds(to_html(report), "id=\"engines\""));
}

TEST(SelfReportEngines, OneFileAndTwoEnginesAreNoProfile) {
  const Report one = three_defects();
  EXPECT_TRUE(engines_of(one, group_verdicts(one)).empty());
  Report two = two_files();
  two.judged.back().facts.back().second = "5.23.0";
  EXPECT_TRUE(engines_of(two, group_verdicts(two)).empty());
}

// --- the page
// -------------------------------------------------------------------------------------

TEST(SelfReportHtml, HasItsPartsInOrder) {
  const std::string page = to_html(three_defects());
  size_t last = 0;
  for (const char* part : {"<h1>", "id=\"defects\"", "id=\"where\"", "id=\"looks\"",
                           "id=\"decisions\"", "id=\"judged\"", "id=\"numbers\""}) {
    const size_t at = page.find(part);
    ASSERT_NE(at, std::string::npos) << part;
    EXPECT_GT(at, last) << part;
    last = at;
  }
  EXPECT_EQ(times(page, "<article class=\"defect\">"), 3u);
  EXPECT_EQ(times(page, "<figure class=\"look\">"), 3u);
  EXPECT_TRUE(holds(page, "5.24.0"));
  EXPECT_TRUE(holds(page, "Candidates: in 2 of 5 rows with a choice"));
}

TEST(SelfReportHtml, OriginsAreOutlinedAndInheritedErrorsPale) {
  const std::string page = to_html(three_defects());
  const std::string map = page.substr(page.find("id=\"where\""));
  EXPECT_EQ(times(map.substr(0, map.find("id=\"looks\"")), "height=\"11\" class=\"origin\""), 3u);
  EXPECT_EQ(times(map, " pale\""), 1u);
}

TEST(SelfReportHtml, APictureKeepsWhatItsCellsSay) {
  const std::string page = to_html(three_defects());
  const std::string looks = page.substr(page.find("id=\"looks\""));
  const std::string one = looks.substr(looks.find("<figure class=\"look\">"));
  const std::string cells = one.substr(0, one.find("</figure>"));
  EXPECT_TRUE(holds(cells, "class=\"s0\" d=\"M18 18h26v16h-26z\"")) << cells;
  EXPECT_TRUE(holds(cells, "class=\"s1\" d=\"M18 34h52v16h-52z\"")) << cells;
  EXPECT_TRUE(holds(cells, "class=\"s9\" d=\"M70 18h26v16h-26zM70 34h26v16h-26z\"")) << cells;
  EXPECT_TRUE(holds(cells, "class=\"cut\" d=\"M18 34h78\"")) << cells;
}

TEST(SelfReportHtml, StaysBelowAMegabyte) {
  Report report;
  for (int c = 0; c < 20; ++c)
    for (int64_t layer = 0; layer < 61; ++layer)
      for (const char* tap : {"ix.q", "ix.k", "attn.out", "mlp.out", "hidden"})
        for (const Mode mode : {Mode::staged, Mode::forced}) {
          Verdict v = check("layers." + std::to_string(layer) + "." + tap, mode, Trust::fail, 7);
          v.case_name = "case" + std::to_string(c);
          v.layer = layer;
          v.structure = v.note = std::string(400, '&');
          report.verdicts.push_back(v);
        }
  const std::string page = to_html(report);
  EXPECT_LE(page.size(), size_t{1} << 20);
  EXPECT_TRUE(holds(page, "more: see report.json"));
}

TEST(SelfReportHtml, ACurveOutsideItsBandIsDrawnSo) {
  Report report;
  Verdict v = check("curve.loss", Mode::free, Trust::pass, 1);
  v.layer.reset();
  v.suite = "loss_descent";
  v.curve = Curve{.values = {5, 4, 3}, .expected = {5, 4, 3}, .low = {4, 3, 2}, .high = {6, 5, 4}};
  report.verdicts = {v};
  EXPECT_TRUE(holds(to_html(report), "class=\"judged inside\""));
  report.verdicts[0].curve->values[2] = 4.5;
  EXPECT_TRUE(holds(to_html(report), "class=\"judged\""));
  report.verdicts[0].curve->values = {std::numeric_limits<double>::quiet_NaN(), 1, 2};
  EXPECT_TRUE(holds(to_html(report), "class=\"judged\""));
}

// --- shades
// ---------------------------------------------------------------------------------------

TEST(SelfReportShades, TheLimitPartsOneFromTwo) {
  EXPECT_EQ(shade_of(0), 0);
  EXPECT_EQ(shade_of(1), 1);
  EXPECT_EQ(shade_of(std::nextafter(1.0, 2.0)), 2);
  EXPECT_EQ(shade_of(10), 3);
  EXPECT_EQ(shade_of(1000), 7);
  EXPECT_EQ(shade_of(1e300), 9);
  EXPECT_EQ(shade_of(std::nan("")), 9);
  EXPECT_EQ(shade_of(std::numeric_limits<double>::infinity()), 9);
}

// --- annotations
// ----------------------------------------------------------------------------------

TEST(SelfReportAnnotations, OneCommandForEachDefect) {
  const std::string text = to_annotations(three_defects());
  EXPECT_EQ(times(text, "::error title="), 3u);
  EXPECT_TRUE(text.starts_with(
      "::error title=dsv32-verify%3A candidate fork.safetensors::words of two: logits 50 %25 off"))
      << text;
  Report quiet;
  EXPECT_EQ(to_annotations(quiet), "::error title=dsv32-verify::Nothing was checked.\n");
}

TEST(SelfReportAnnotations, NobodyBeginsACommandOfHisOwn) {
  Report report = three_defects();
  report.findings[0].defects[0].words = "x\n::error::owned\r::stop-commands::y %0A::set-env";
  report.findings[0].subject.label = "a,file=b::c\n::debug::d";
  const std::string text = to_annotations(report);
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_TRUE(line.starts_with("::error title=dsv32-verify%3A ")) << line;
    EXPECT_FALSE(holds(line.substr(0, line.find("::", 8)), ",")) << line;
  }
  EXPECT_FALSE(holds(text, " %0A"));
}

// --- lines that fit
// -------------------------------------------------------------------------------

size_t widest(const std::string& text) {
  std::istringstream lines(text);
  size_t most = 0;
  for (std::string line; std::getline(lines, line);) most = std::max(most, line.size());
  return most;
}

TEST(SelfReportFit, NoLineIsTooWide) {
  const std::string long_word(200, 'x');
  for (const size_t width : {20u, 40u, 80u, 120u}) {
    const std::string text = "    finding   some words that go on and on " + long_word +
                             " and an end that does not matter\n" + long_word + "\nshort\n";
    EXPECT_LE(widest(fitted(text, width)), width);
  }
  EXPECT_EQ(fitted("    finding   short\n", 40), "    finding   short\n");
}

TEST(SelfReportFit, TextKeepsItsColumn) {
  const std::string text =
      fitted("    finding   " + std::string(50, 'a') + " " + std::string(20, 'b') + "\n", 70);
  EXPECT_EQ(text, "    finding   " + std::string(50, 'a') + "\n              " +
                      std::string(20, 'b') + "\n");
}

TEST(SelfReportFit, ACommandCanStillBePasted) {
  const std::string text =
      fitted("    repro     dsv32-verify --case tiny-wide -k 'a b c d e f g h i j k'\n", 40);
  EXPECT_EQ(text,
            "    repro     dsv32-verify --case \\\n      tiny-wide -k \\\n      'a b c d e f g h i "
            "j k'\n");
}

TEST(SelfReportFit, AReportFits) {
  Report report = three_defects();
  for (Verdict& v : report.verdicts) v.structure = "a head (3) holds 98 % of the squared error";
  for (const size_t width : {40u, 80u}) {
    std::istringstream lines(to_terminal(report, false, false, width));
    for (std::string line; std::getline(lines, line);)
      // A word of a command stays whole.
      EXPECT_TRUE(line.size() <= width || holds(line, "fork.safetensors/")) << line;
  }
  EXPECT_TRUE(holds(to_terminal(report, true, false, 40), "\x1b[1;31mFAIL\x1b[0m     tiny"));
}

// --- the terminal
// ----------------------------------------------------------------------------------

TEST(SelfReportScreen, ALongRunHasSecondsWithoutAnExponent) {
  Report report = three_defects();
  report.seconds = 2168.4;
  EXPECT_NE(to_terminal(report, false, false).find(" | 2168 s"), std::string::npos);
}

TEST(SelfReportScreen, SeveralFailuresBeginWithWhatIsWrongInAll) {
  Report report = three_defects();
  const Finding finding = report.findings.front();
  for (const char* name : {"layers.0.q_rope", "layers.0.ix.k"}) {
    Verdict v = check(name, Mode::staged, Trust::fail, 9);
    v.case_name = "tiny-wide";
    report.verdicts.push_back(v);
  }
  report.findings.push_back(finding);
  report.findings.back().case_name = "tiny-wide";
  const std::string text = to_terminal(report, false, false);
  EXPECT_TRUE(
      text.starts_with("FAIL     candidate is wrong in 3 ways, the gravest: words of two.\n"
                       "  1. words of two: logits 50 % off (tiny, tiny-wide)\n"
                       "  2. words of three: "))
      << text;
  const size_t second = text.find("tiny-wide  candidate");
  ASSERT_NE(second, std::string::npos) << text;
  EXPECT_EQ(text.find("    first ", second), std::string::npos) << "told above";
  EXPECT_NE(text.find("explained above", second), std::string::npos);
  const std::string verbose = to_terminal(report, false, true);
  EXPECT_EQ(verbose.find("explained above"), std::string::npos);
}

// --- what a reader refuses
// ------------------------------------------------------------------------

TEST(SelfReportValidate, RefusesWhatTheFormatDoesNotHave) {
  const std::string good = to_json(three_defects());
  EXPECT_EQ(validated_report(good, "r").findings.size(), 1u);
  const auto refused = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    try {
      static_cast<void>(validated_report(text, "r"));
      ADD_FAILURE() << "accepted " << to;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::artefact);
    }
  };
  refused("\"suites\":", "\"surprise\": 1, \"suites\":");
  refused("\"fail\":4", "\"fail\":3");
  refused("\"cells\":[\"0.9\"", "\"cells\":[7");
  refused("\"checked\":59", "\"checked\":59,\"more\":null");
}

}  // namespace
}  // namespace dsv32::harness
