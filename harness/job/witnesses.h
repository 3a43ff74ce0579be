#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "harness/report/witness.h"

/// The golden and our own models are the witnesses of a case. Their verdicts depend on this program
/// and on the case alone, so a run that judges a large candidate does not ask them again: it reads
/// here what an earlier run of the same program found.
namespace dsv32::harness {

/// A folder of small files, one for each set of verdicts; safe for several runs at once.
class WitnessStore {
 public:
  explicit WitnessStore(std::filesystem::path folder);

  /// nullopt: nobody asked them under this key yet, or what is there cannot be read.
  std::optional<std::vector<Witness>> find(const std::string& key) const;
  /// Forgets the oldest when there are many. A folder that cannot be written keeps nothing,
  /// silently: the verdicts of this run do not depend on it.
  void keep(const std::string& key, const std::vector<Witness>& witnesses) const;

 private:
  std::filesystem::path file_of(const std::string& key) const;
  std::filesystem::path folder_;
};

/// $DSV32_CACHE, else dsv32-verify under $XDG_CACHE_HOME or ~/.cache; empty where there is none.
std::filesystem::path cache_folder();

/// "golden and reference float32: PASS, 2825 checks".
std::string described(const std::vector<Witness>& witnesses);

}  // namespace dsv32::harness
