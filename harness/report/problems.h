#pragma once

#include <string>
#include <vector>

#include "harness/report/groups.h"

/// What is wrong, in the order in which a reader should learn of it.
namespace dsv32::harness {

/// One defect with all the places where it was seen, or a failure that no defect explains.
struct Problem {
  std::string words;  // "excluded groups filled with 0 instead of -inf", or the finding's headline
  std::string name;   // of the known bug; "" where it has none
  std::string severity;              // "logits 41 % off, ..."; "" where it was not weighed
  const Finding* finding = nullptr;  // where it is gravest
  const Defect* defect = nullptr;    // there; nullptr: nothing but a failing check is known
  const Verdict* verdict = nullptr;  // its first failing check there
  std::vector<const Group*> groups;  // where it was seen, the gravest first
};

/// Whether the same party does the same thing; of "a or b" and "b" it may.
bool is_same_problem(const Problem& a, const Problem& b);
/// The gravest first; a crash before everything else. The same defect in several cases is one.
std::vector<Problem> problems_of(const std::vector<Group>& groups);

/// The verdict of the whole report in one sentence.
std::string verdict_sentence(const Report& report, const std::vector<Group>& groups,
                             const std::vector<Problem>& problems);
/// "layers 0 and 1", "all layers".
std::string layers_text(const Defect& defect);
/// "tiny-wide (golden), tiny-bias": the cases of these groups.
std::string places_text(const std::vector<const Group*>& groups, size_t shown);

/// Facts of a provenance in their order, those that a reader looks for first; empty ones left out.
using FactRows = std::vector<std::pair<std::string, std::string>>;
/// Who judged: version, commit, what the arithmetic was.
FactRows judge_facts(const Report& report);

}  // namespace dsv32::harness
