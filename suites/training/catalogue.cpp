// The list of training suites is whole: what it leaves out would be skipped without a word.

#include <gtest/gtest.h>

#include <algorithm>

#include "golden/reader/golden.h"
#include "harness/training/suite.h"

namespace dsv32::suites {
namespace {

/// "SUITE.CASE" of every training golden in the project's own folder.
std::vector<std::string> training_goldens() {
  std::vector<std::string> names;
  for (const golden::ManifestEntry& entry : golden::read_manifest(golden::default_directory()))
    if (entry.kind == "train") names.push_back(entry.case_name);
  return names;
}

TEST(TrainingCatalogue, EveryGoldenBelongsToASuite) {
  const std::vector<std::string> names = training_goldens();
  EXPECT_FALSE(names.empty());
  for (const std::string& name : names) {
    const size_t dot = name.find('.');
    EXPECT_TRUE(harness::lists_golden(name.substr(0, dot), name.substr(dot + 1))) << name;
  }
}

TEST(TrainingCatalogue, EveryGoldenOfASuiteIsOfOneOfItsCases) {
  for (const harness::TrainingSuite& suite : harness::training_suites())
    for (const harness::TrainingGoldenName& golden : suite.goldens)
      EXPECT_NE(std::find(suite.cases.begin(), suite.cases.end(), golden.case_name),
                suite.cases.end())
          << suite.name << ": " << golden.suite << " of " << golden.case_name;
}

}  // namespace
}  // namespace dsv32::suites
