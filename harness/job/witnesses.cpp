#include "harness/job/witnesses.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "src/io/output.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSuffix = ".json";
constexpr size_t kMostKept = 500;

/// Entries of the folder, oldest first.
std::vector<fs::path> by_age(const fs::path& folder) {
  std::vector<std::pair<fs::file_time_type, fs::path>> entries;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == kSuffix)
      entries.emplace_back(entry.last_write_time(), entry.path());
  std::sort(entries.begin(), entries.end());
  std::vector<fs::path> paths;
  for (auto& [time, path] : entries) paths.push_back(std::move(path));
  return paths;
}

}  // namespace

WitnessStore::WitnessStore(fs::path folder) : folder_(std::move(folder)) {}

fs::path WitnessStore::file_of(const std::string& key) const { return folder_ / (key + kSuffix); }

std::optional<std::vector<Witness>> WitnessStore::find(const std::string& key) const {
  if (folder_.empty()) return std::nullopt;
  std::ifstream in(file_of(key));
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  return read_witnesses(text);
}

void WitnessStore::keep(const std::string& key, const std::vector<Witness>& witnesses) const {
  if (folder_.empty()) return;
  try {
    fs::create_directories(folder_);
    const std::string text = witnesses_json(witnesses);
    io::OutputFile file(file_of(key));
    file.write(0, text.data(), text.size());
    file.commit();
    const std::vector<fs::path> kept = by_age(folder_);
    for (size_t i = 0; i + kMostKept < kept.size(); ++i) fs::remove(kept[i]);
  } catch (const fs::filesystem_error&) {
  } catch (const Error&) {
  }
}

fs::path cache_folder() {
  const auto set = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  if (const std::string own = set("DSV32_CACHE"); !own.empty()) return own;
  if (const std::string base = set("XDG_CACHE_HOME"); !base.empty())
    return fs::path(base) / "dsv32-verify";
  const std::string home = set("HOME");
  return home.empty() ? fs::path() : fs::path(home) / ".cache" / "dsv32-verify";
}

std::string described(const std::vector<Witness>& witnesses) {
  std::string names;
  size_t checks = 0, failed = 0;
  for (const Witness& w : witnesses) {
    names += (names.empty() ? "" : ", ") + w.subject.label;
    checks += w.checks, failed += w.failed;
  }
  return names + ": " +
         (failed > 0 ? "FAIL, " + std::to_string(failed) + " of " : std::string("PASS, ")) +
         std::to_string(checks) + " checks";
}

}  // namespace dsv32::harness
