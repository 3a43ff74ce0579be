#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "harness/cases/case_run.h"

/// `selfcheck`: proof that the judge can fail.
namespace dsv32::harness {

/// One fault, and what the judge said of the trace with it.
struct PlantedFault {
  std::string name;   // of the catalogue, or "one value moved"
  std::string words;  // what it is
  bool caught = false, named = false;
  bool has_name = false;  // it is in the catalogue
  std::string said;       // "layers.0.ix.k (staged); known bug k-norm-eps", "PASS"
};

struct SelfCheck {
  std::string subject;  // "my.safetensors", "reference float32"
  std::string case_name;
  std::string unclean;  // what the judge says of the trace as it is; "" when it passes
  std::vector<PlantedFault> faults;

  bool all_caught() const;
};

/// Plants a sample of the catalogue of known bugs, and corruptions of single taps, one after the
/// other into a clean trace, and judges it each time; nothing is planted into one that fails as it
/// is. A bug is planted as what it does to the float64 run, added to the trace's own values.
/// `trace`: a file of mode forward or backward; without one the reference's of tiny-wide. `tell` is
/// called with each fault when it was judged. Throws Error (artefact) for a file of another kind.
SelfCheck self_check(const std::optional<std::filesystem::path>& trace, const RunSettings& settings,
                     const std::function<void(const PlantedFault&)>& tell);

}  // namespace dsv32::harness
