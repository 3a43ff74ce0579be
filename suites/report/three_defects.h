#pragma once

#include <string>

#include "harness/report/report.h"

/// A report that the tests of renderings and of differences share.
namespace dsv32::harness {

inline const Subject kFork{.party = Party::candidate, .label = "candidate fork.safetensors"};

inline Verdict check(const std::string& tap, Mode mode, Trust trust, double measured) {
  Verdict v{.case_name = "tiny", .subject = kFork, .tap = tap};
  v.layer = 0;
  v.mode = mode;
  v.trust = trust;
  v.measures = {{"row ratio", measured, 3, "calibrated"}};
  v.checked = 59;
  return v;
}

inline Defect defect(const std::string& name, const std::string& tap, double logits) {
  return {.name = name,
          .words = "words of " + name,
          .evidence = "evidence of " + name,
          .taps = {tap},
          .layers = {0},
          .severity = Severity{.logits = logits, .loss_before = 5.5, .loss_after = 5.5}};
}

/// Three defects, of which the second of the finding is the gravest of all; one error is inherited.
inline Report three_defects() {
  Report report{.tool_version = "1.2.3", .command = "dsv32-verify --candidate fork.safetensors"};
  report.environment = {{"torch", "2.11.0"}, {"commit", "abc"}};
  report.judged = {{"tiny", kFork, {{"sha256", "feed"}, {"transformers", "5.24.0"}}}};
  for (const char* tap : {"layers.0.q_rope", "layers.0.ix.k", "layers.0.mlp.out"}) {
    report.verdicts.push_back(check(tap, Mode::staged, Trust::fail, 612));
    report.verdicts.back().picture = Picture{.rows = "tokens",
                                             .columns = "heads",
                                             .row_count = 2,
                                             .column_count = 3,
                                             .batch = 1,
                                             .cells = {"0.9", "119"}};
  }
  report.verdicts.push_back(check("layers.0.hidden", Mode::forced, Trust::fail, 40));
  report.verdicts.push_back(check("layers.0.topk", Mode::staged, Trust::pass, 1));
  report.verdicts.back().choices = Choices{.rows = 9, .determined = 4, .differing = 2};
  report.findings = {
      {.case_name = "tiny",
       .subject = kFork,
       .fault = Fault::candidate,
       .first_tap = "layers.0.q_rope",
       .headline = "words of two",
       .causes = {},
       .defects = {defect("one", "layers.0.q_rope", 0.01), defect("two", "layers.0.ix.k", 0.5),
                   defect("three", "layers.0.mlp.out", 0.02)},
       .profile = "spec-1 + {one, two, three}"}};
  return report;
}

inline bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline size_t times(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

}  // namespace dsv32::harness
