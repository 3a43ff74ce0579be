// The main program of every suite: GoogleTest's own flags, and
//   --case NAME   the case under test
//   --gpu         the suite needs a device: all tests skipped is exit 77
// A test that did not run is never green: no test at all, or a skipped one, is exit 1.

#include <gtest/gtest.h>

#include <iostream>
#include <stdexcept>
#include <string>

#include "suites/kit/suite.h"

namespace dsv32::suites {
namespace {

constexpr int kSkipped = 77;

std::string& named_case() {
  static std::string name;
  return name;
}

int refuse(const std::string& why) {
  std::cerr << why << "\n";
  return 1;
}

int judge_run(const testing::UnitTest& run, bool gpu, int failed) {
  const int skipped = run.skipped_test_count();
  const int executed = run.successful_test_count() + run.failed_test_count();
  if (failed != 0) return failed;
  if (executed == 0 && skipped == 0) return refuse("no test ran");
  if (gpu && executed == 0) return kSkipped;
  if (skipped > 0) return refuse("a test was skipped");
  return 0;
}

}  // namespace

const std::string& suite_case() {
  if (named_case().empty()) throw std::logic_error("this suite needs --case NAME");
  return named_case();
}

int run_suite(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  bool gpu = false;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--gpu") {
      gpu = true;
    } else if (flag == "--case" && i + 1 < argc) {
      named_case() = argv[++i];
    } else {
      return refuse("unknown argument " + flag + ": expected --case NAME or --gpu");
    }
  }
  const int failed = RUN_ALL_TESTS();
  return judge_run(*testing::UnitTest::GetInstance(), gpu, failed);
}

}  // namespace dsv32::suites

int main(int argc, char** argv) { return dsv32::suites::run_suite(argc, argv); }
