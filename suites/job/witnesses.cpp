// What an earlier run found about golden and own models: kept, found again, never believed blindly.

#include "harness/job/witnesses.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "harness/job/findings.h"
#include "suites/kit/io_files.h"

namespace dsv32::suites {
namespace {

using harness::Fault;
using harness::Findings;
using harness::Job;
using harness::Party;
using harness::Report;
using harness::Subject;
using harness::Trust;
using harness::Verdict;
using harness::Witness;
using harness::WitnessStore;

const Subject kGolden{.party = Party::golden, .label = "golden"};
const Subject kCandidate{.party = Party::candidate, .label = "candidate fork.safetensors"};
const std::vector<Witness> kFound = {
    {.subject = kGolden, .checks = 12, .failed = 0},
    {.subject = {.party = Party::reference, .label = "reference"}, .checks = 30, .failed = 2}};

TEST(SelfWitnesses, WhatIsKeptIsFoundUnderItsKeyAlone) {
  const Folder folder;
  const WitnessStore store(folder.path() / "verdicts");
  EXPECT_FALSE(store.find("a"));
  store.keep("a", kFound);
  const auto found = store.find("a");
  ASSERT_TRUE(found);
  ASSERT_EQ(found->size(), 2u);
  EXPECT_EQ(found->front().subject, kGolden);
  EXPECT_EQ(found->back().failed, 2u);
  EXPECT_FALSE(store.find("b"));
  EXPECT_EQ(harness::described(*found), "golden, reference: FAIL, 2 of 42 checks");
}

TEST(SelfWitnesses, AFileThatIsNoneIsNoWitness) {
  const Folder folder;
  const WitnessStore store(folder.path());
  for (const char* text : {"", "{", "[{}]", "[1]"}) {
    std::ofstream(folder.path() / "a.json") << text;
    EXPECT_FALSE(store.find("a")) << text;
  }
}

TEST(SelfWitnesses, WithoutAFolderNothingIsKept) {
  const Folder folder;
  std::ofstream(folder.path() / "file") << "x";
  for (const WitnessStore& store :
       {WitnessStore(""), WitnessStore(folder.path() / "file" / "verdicts")}) {
    store.keep("a", kFound);
    EXPECT_FALSE(store.find("a"));
  }
}

Fault fault_of_a_failing_candidate(const std::vector<Witness>& recalled) {
  const Job job;
  Report report;
  Findings findings(job, report, "small");
  findings.recall(recalled);
  Verdict red{.tap = "layers.0.ix.q", .trust = Trust::fail};
  findings.add(kCandidate, {red});
  findings.settle();
  return report.findings.front().fault;
}

TEST(SelfWitnesses, AGoldenThatFailedBeforeCountsForTheBlame) {
  EXPECT_EQ(fault_of_a_failing_candidate({}), Fault::candidate);
  EXPECT_EQ(fault_of_a_failing_candidate({kFound.front()}), Fault::candidate);
  EXPECT_EQ(fault_of_a_failing_candidate({{.subject = kGolden, .checks = 12, .failed = 1}}),
            Fault::configuration);
}

}  // namespace
}  // namespace dsv32::suites
