#include "harness/job/self_check.h"

#include <iostream>

#include "harness/cli/commands.h"
#include "harness/cli/watch.h"
#include "harness/report/text.h"

namespace dsv32::harness {
namespace {

std::string verdict_of(const PlantedFault& fault) {
  if (!fault.caught) return "MISSED";
  return fault.named ? "named" : "caught";
}

/// "named   k-norm-eps: k_norm with eps 1e-5 ...  ->  layers.0.ix.k (staged), row ratio; named ..."
std::string line_of(const PlantedFault& fault) {
  constexpr size_t kVerdict = 8, kName = 30;
  return padded(verdict_of(fault), kVerdict) + padded(fault.name + " ", kName) + "-> " +
         printable(fault.said, 200) + "\n";
}

}  // namespace

ExitCode self_check_command(const Options& options) {
  std::optional<std::filesystem::path> trace;
  if (!options.arguments.empty()) trace = options.arguments.front();
  Watch watch(options);
  const RunSettings settings{.progress = [&](const std::string& text) { watch.step(text); }};
  const SelfCheck check = self_check(trace, settings, [&](const PlantedFault& fault) {
    watch.progress.finish();
    std::cout << line_of(fault) << std::flush;
  });
  watch.stop.disarm();
  watch.progress.finish();
  if (!check.unclean.empty()) {
    std::cout << "FAIL | " << printable(check.subject, 80)
              << " is not clean, so nothing was planted: " << check.unclean << "\n";
    return ExitCode::parity;
  }
  const auto count = [&](bool PlantedFault::*flag) {
    return std::count_if(check.faults.begin(), check.faults.end(),
                         [flag](const PlantedFault& f) { return f.*flag; });
  };
  std::cout << (check.all_caught() ? "PASS" : "FAIL") << " | " << count(&PlantedFault::caught)
            << " of " << check.faults.size() << " planted faults caught, "
            << count(&PlantedFault::named) << " of " << count(&PlantedFault::has_name)
            << " bugs of the catalogue named | " << printable(check.subject, 80) << ", case "
            << check.case_name << "\n";
  return check.all_caught() ? ExitCode::ok : ExitCode::parity;
}

}  // namespace dsv32::harness
