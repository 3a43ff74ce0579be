// Who is blamed for a failure, whatever the subjects are called.

#include "harness/job/findings.h"

#include <gtest/gtest.h>

#include "harness/report/groups.h"
#include "harness/training/suite.h"

namespace dsv32::suites {
namespace {

using harness::Fault;
using harness::Finding;
using harness::Findings;
using harness::Job;
using harness::Party;
using harness::Report;
using harness::Subject;
using harness::Trust;
using harness::Verdict;

constexpr char kCheck[] = "layers.0.ix.q";

Verdict verdict(Trust trust, const std::string& check = kCheck) {
  return {.tap = check, .mode = harness::Mode::forced, .trust = trust};
}

/// The report of one training suite about these subjects, each with one check.
Report settled(const std::vector<std::pair<Subject, Trust>>& subjects) {
  const Job job;
  Report report;
  Findings findings(job, report, "tiny-wide", "indexer_kl");
  for (const auto& [subject, trust] : subjects) findings.add(subject, {verdict(trust)});
  findings.settle();
  return report;
}

Fault fault_of(const Report& report, const Subject& subject) {
  for (const Finding& finding : report.findings)
    if (finding.subject == subject) return finding.fault;
  throw std::runtime_error("no finding about " + subject.label);
}

const Subject kOptimized = harness::judged_side("optimized-simt", ", warmup");
const Subject kReference = harness::judged_side("reference", ", warmup");
const Subject kFork{.party = Party::candidate, .label = "candidate golden.safetensors"};

TEST(SelfFindings, AFailingGoldenIsBlamedUnderEveryLabel) {
  // As the suites sharded and indexer_kl call theirs.
  for (const char* note : {"", ", 2 ranks", ", 2 ranks, accumulation 3", ", warmup", ", joint"}) {
    const Subject golden = harness::golden_side(note);
    const Report report = settled({{golden, Trust::fail}, {kReference, Trust::pass}});
    EXPECT_EQ(fault_of(report, golden), Fault::golden) << golden.label;
    EXPECT_EQ(fault_of(report, kReference), Fault::none);
    EXPECT_EQ(report.exit_code(), ExitCode::parity);
  }
}

TEST(SelfFindings, EachPartyIsBlamedForItsOwnFailure) {
  const Subject golden = harness::golden_side(", warmup");
  const std::vector<std::pair<Subject, Fault>> rows = {{golden, Fault::golden},
                                                       {kReference, Fault::reference},
                                                       {kOptimized, Fault::optimized},
                                                       {kFork, Fault::candidate}};
  for (const auto& [guilty, fault] : rows) {
    std::vector<std::pair<Subject, Trust>> subjects;
    for (const auto& [subject, unused] : rows)
      subjects.push_back({subject, subject == guilty ? Trust::fail : Trust::pass});
    const Report report = settled(subjects);
    for (const auto& [subject, unused] : rows)
      EXPECT_EQ(fault_of(report, subject), subject == guilty ? fault : Fault::none)
          << guilty.label << ", " << subject.label;
  }
}

TEST(SelfFindings, GoldenAndCandidateAgainstTheOracleBlameTheConfiguration) {
  const Subject golden = harness::golden_side();
  const Report report =
      settled({{golden, Trust::fail}, {kReference, Trust::pass}, {kFork, Trust::fail}});
  EXPECT_EQ(fault_of(report, kFork), Fault::configuration);
  EXPECT_EQ(fault_of(report, golden), Fault::golden);
}

TEST(SelfFindings, AMissingGoldenIsNotGreenAndBlamesNobody) {
  Report report;
  Job job;
  job.filter = "ix.q";
  Findings findings(job, report, "tiny");
  findings.add(harness::golden_side(), {verdict(Trust::missing, "golden.file")});
  findings.add(kReference, {verdict(Trust::pass), verdict(Trust::pass, "layers.0.q_latent")});
  findings.settle();
  EXPECT_EQ(fault_of(report, harness::golden_side()), Fault::none);
  EXPECT_EQ(report.verdicts.size(), 2u);
  EXPECT_EQ(report.exit_code(), ExitCode::nothing);
}

TEST(SelfFindings, VerdictsGetCaseAndSuiteAndStandBySubject) {
  const Job job;
  Report report;
  Findings findings(job, report, "tiny-wide", "loss_descent");
  std::vector<Verdict> mixed;
  for (const Subject& subject : {kReference, kOptimized, kReference}) {
    mixed.push_back(verdict(Trust::pass));
    mixed.back().subject = subject;
  }
  findings.add(mixed);
  findings.settle();
  ASSERT_EQ(report.verdicts.size(), 3u);
  EXPECT_EQ(report.verdicts[1].subject, kReference);
  EXPECT_EQ(report.verdicts[2].subject, kOptimized);
  for (const Verdict& v : report.verdicts)
    EXPECT_EQ(harness::check_path(v), "tiny-wide/loss_descent/" + v.subject.label + "/" + kCheck);
  EXPECT_EQ(report.findings.size(), 2u);
}

TEST(SelfFindings, TheTextSaysWhatASubjectIsMeasuredAgainst) {
  harness::Group group{.subject = {.party = Party::candidate, .label = "candidate a vs b"}};
  EXPECT_EQ(harness::subject_text(group), "candidate a vs b vs oracle");
  group.subject.against = harness::Against::golden;
  EXPECT_EQ(harness::subject_text(group), "candidate a vs b vs golden");
  group.subject = {.label = "a and b", .against = harness::Against::trace};
  EXPECT_EQ(harness::subject_text(group), "a and b");
}

}  // namespace
}  // namespace dsv32::suites
