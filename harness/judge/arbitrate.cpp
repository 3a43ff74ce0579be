#include "harness/judge/judge.h"

namespace dsv32::harness {

// clang-format off
// golden | reference | candidate | at fault
// ok, -  | ok        | ok, -     | none
// ok, -  | ok        | bad       | candidate
// bad    | ok        | ok, -     | golden: real Hugging Face code and the spec disagree
// bad    | ok        | bad       | configuration: two witnesses against oracle and reference, which share their code
// bad    | bad       | bad, -    | configuration: nobody agrees with the oracle
// any    | bad       | any other | reference
// clang-format on
Fault arbitrate(bool golden_ok, bool golden_present, bool reference_ok,
                std::optional<bool> candidate_ok) {
  const bool golden_bad = golden_present && !golden_ok;
  const bool candidate_bad = candidate_ok.has_value() && !*candidate_ok;
  if (golden_bad && candidate_bad) return Fault::configuration;
  if (!reference_ok)
    return golden_bad && !candidate_ok.has_value() ? Fault::configuration : Fault::reference;
  if (golden_bad) return Fault::golden;
  return candidate_bad ? Fault::candidate : Fault::none;
}

}  // namespace dsv32::harness
