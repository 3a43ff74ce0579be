#include "harness/cli/golden_commands.h"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <iostream>
#include <set>
#include <span>
#include <sstream>

#include "golden/reader/golden.h"
#include "golden/reader/pinned.h"
#include "harness/cli/training_golden_commands.h"
#include "harness/judge/measure/metrics.h"
#include "src/io/io.h"
#include "src/io/json.h"
#include "src/io/text.h"

namespace dsv32::harness {
namespace {

namespace fs = std::filesystem;

size_t count_taps(const golden::Golden& golden, bool gradients) {
  const auto counts = [&](const std::string& name) {
    return name.starts_with("grad.") == gradients;
  };
  size_t n = std::count_if(golden.trace.names().begin(), golden.trace.names().end(), counts);
  for (const auto& [name, sketch] : golden.sketches) n += counts(name) ? 1 : 0;
  return n;
}

/// "transformers 5.23.0, torch 2.11.0+cpu" from the attribute `producer`.
std::string versions_of(const std::map<std::string, std::string>& attributes,
                        const std::string& where) {
  const io::Json producer = io::parse_json(attributes.at("producer"), where + ": producer");
  std::string text;
  for (const char* library : {"transformers", "torch", "peft", "deepspeed"}) {
    const io::Json flat = producer.is_object() ? producer.flatten() : io::Json::object();
    for (const auto& [key, value] : flat.items()) {
      if (!key.ends_with(std::string("/") + library) || !value.is_string()) continue;
      text += (text.empty() ? "" : ", ") + std::string(library) + " " +
              io::printable(value.get<std::string>());
    }
  }
  return text;
}

// --- verify -------------------------------------------------------------------------------------

std::string size_text(uint64_t bytes) {
  constexpr uint64_t kKib = 1024;
  return std::to_string((bytes + kKib - 1) / kKib) + " KiB";
}

bool verify_entry(const golden::ManifestEntry& entry, const fs::path& directory) {
  constexpr int kNameWidth = 36;
  std::cout << std::left << std::setw(kNameWidth) << entry.case_name << std::setw(8) << entry.kind
            << std::right << std::setw(10) << size_text(entry.size) << "  ";
  try {
    if (golden::is_training(entry)) {
      const golden::TrainingGolden golden = load_entry(entry, directory);
      std::cout << "ok   " << summary(golden) << "  " << golden.dialect << "  "
                << versions_of(golden.attributes, entry.file) << "\n";
      return true;
    }
    const golden::Golden golden = golden::load(entry.case_name, directory);
    std::cout << "ok   " << count_taps(golden, false) << " taps, " << count_taps(golden, true)
              << " gradients  " << golden.dialect << "  "
              << versions_of(golden.attributes, entry.file) << "\n";
    return true;
  } catch (const Error& error) {
    std::cout << "BAD  " << error.what() << "\n";
    return false;
  }
}

/// Files that no hash pins; nothing reads them.
std::vector<std::string> unlisted_files(const std::vector<golden::ManifestEntry>& entries,
                                        const fs::path& directory) {
  std::set<std::string> unlisted;
  for (const fs::directory_entry& file : fs::directory_iterator(directory)) {
    const std::string name = file.path().filename().string();
    const auto same = [&](const golden::ManifestEntry& e) { return e.file == name; };
    const bool listed = std::any_of(entries.begin(), entries.end(), same);
    if (file.path().extension() == ".h5" && !listed) unlisted.insert(io::printable(name));
  }
  return {unlisted.begin(), unlisted.end()};
}

/// Cases that configs/cases.json promises a golden for and the manifest lacks.
std::vector<std::string> absent_cases(const std::vector<golden::ManifestEntry>& entries) {
  std::vector<std::string> absent;
  for (const Case& c : io::cases()) {
    const auto same = [&](const golden::ManifestEntry& e) { return e.case_name == c.name; };
    const bool listed = std::any_of(entries.begin(), entries.end(), same);
    if (c.golden != "none" && !listed) absent.push_back(c.name);
  }
  return absent;
}

// --- show ---------------------------------------------------------------------------------------

/// Without the -inf of hidden keys.
double finite_norm(std::span<const double> values) {
  double sum = 0;
  for (const double v : values) sum += std::isinf(v) ? 0 : v * v;
  return std::sqrt(sum);
}

void show_attributes(const std::map<std::string, std::string>& attributes) {
  for (const auto& [name, value] : attributes) {
    if (name == "taps" || name == "parameters") continue;  // listed below
    std::cout << "  " << std::left << std::setw(20) << io::printable(name) << " "
              << io::printable(value, 2000) << "\n";
  }
}

void show_tap(const std::string& name, const Shape& shape, double norm, const std::string& form) {
  std::cout << "  " << std::left << std::setw(56) << name << " " << std::setw(20)
            << to_string(shape) << " norm " << std::setprecision(6) << norm << form << "\n";
}

void show_taps(const golden::Golden& golden) {
  if (!golden.attributes.contains("taps")) {  // of decoding
    for (const std::string& name : golden.trace.names()) {
      const HostTensor& tap = *golden.trace.find(name);
      show_tap(name, tap.shape(), finite_norm(tap.to_doubles()), "");
    }
    return;
  }
  for (const io::Json& json : io::parse_json(golden.attributes.at("taps"), "attribute taps")) {
    const std::string name = json.get<std::string>();
    if (const HostTensor* tap = golden.trace.find(name)) {
      show_tap(name, tap->shape(), finite_norm(tap->to_doubles()), "");
      continue;
    }
    const golden::SketchedTap& sketch = golden.sketches.at(name);
    const std::vector<double> norms(sketch.row_norms.begin(), sketch.row_norms.end());
    show_tap(name, sketch.shape, finite_norm(norms),
             "  sketch, " + std::to_string(sketch.row_index.size()) + " rows kept");
  }
}

// --- diff ---------------------------------------------------------------------------------------

std::string relative_text(std::span<const double> a, std::span<const double> b) {
  std::ostringstream text;
  text << "relative difference " << std::setprecision(3) << relative(a, b);
  return text.str();
}

std::string rows_text(const HostTensor& a, const HostTensor& b) {
  const int64_t width = a.shape().back(), rows = a.numel() / width;
  int64_t changed = 0;
  for (int64_t row = 0; row < rows; ++row) {
    bool same = true;
    for (int64_t i = row * width; same && i < (row + 1) * width; ++i) same = a.at(i) == b.at(i);
    changed += same ? 0 : 1;
  }
  return "decision differs in " + std::to_string(changed) + " of " + std::to_string(rows) + " rows";
}

void compare_taps(const Trace& a, const Trace& b, std::vector<Change>& changes) {
  for (const std::string& name : b.names()) {
    const HostTensor *left = a.find(name), *right = b.find(name);
    if (left == nullptr) {
      changes.push_back({name, "added"});
    } else if (left->shape() != right->shape() || left->dtype() != right->dtype()) {
      changes.push_back(
          {name, "shape " + to_string(left->shape()) + " became " + to_string(right->shape())});
    } else if (!left->identical(*right)) {
      changes.push_back({name, is_decision(name)
                                   ? rows_text(*left, *right)
                                   : relative_text(left->to_doubles(), right->to_doubles())});
    }
  }
  for (const std::string& name : a.names()) {
    if (!b.has(name)) changes.push_back({name, "removed"});
  }
}

std::vector<double> sketch_values(const golden::SketchedTap& sketch) {
  std::vector<double> values(sketch.rows.begin(), sketch.rows.end());
  values.insert(values.end(), sketch.row_norms.begin(), sketch.row_norms.end());
  values.insert(values.end(), sketch.projections.begin(), sketch.projections.end());
  return values;
}

void compare_sketches(const golden::Golden& a, const golden::Golden& b,
                      std::vector<Change>& changes) {
  for (const auto& [name, right] : b.sketches) {
    const auto it = a.sketches.find(name);
    if (it == a.sketches.end()) {
      changes.push_back({name, "added"});
      continue;
    }
    const std::vector<double> left = sketch_values(it->second), values = sketch_values(right);
    if (it->second.shape != right.shape || it->second.row_index != right.row_index) {
      changes.push_back({name, "shape or chosen rows differ"});
    } else if (left != values) {
      changes.push_back({name, relative_text(left, values) + " (sketch)"});
    }
  }
  for (const auto& [name, left] : a.sketches) {
    if (b.sketches.count(name) == 0) changes.push_back({name, "removed"});
  }
}

using Attributes = std::map<std::string, std::string>;

void compare_attributes(const Attributes& a, const Attributes& b, std::vector<Change>& changes) {
  for (const auto& [name, value] : b) {
    const auto it = a.find(name);
    if (it == a.end() || it->second != value) changes.push_back({"attribute " + name, "differs"});
  }
  for (const auto& [name, value] : a) {
    if (b.count(name) == 0) changes.push_back({"attribute " + name, "removed"});
  }
}

void print_changes(const std::string& case_name, const std::vector<Change>& changes) {
  constexpr size_t kShown = 40;
  std::cout << case_name << ": "
            << (changes.empty() ? "identical" : std::to_string(changes.size()) + " changes")
            << "\n";
  for (size_t i = 0; i < std::min(changes.size(), kShown); ++i) {
    std::cout << "  " << std::left << std::setw(56) << io::printable(changes[i].tap) << " "
              << changes[i].text << "\n";
  }
  if (changes.size() > kShown) std::cout << "  ... and " << changes.size() - kShown << " more\n";
}

bool diff_training(const golden::ManifestEntry& a, const fs::path& in_a,
                   const golden::ManifestEntry& b, const fs::path& in_b) {
  const golden::TrainingGolden left = load_entry(a, in_a), right = load_entry(b, in_b);
  std::vector<Change> changes;
  compare_attributes(left.attributes, right.attributes, changes);
  compare_content(left, right, changes);
  print_changes(left.name, changes);
  return changes.empty();
}

bool diff_case(const std::string& case_name, const fs::path& a, const fs::path& b) {
  const std::vector<golden::ManifestEntry> of_a = golden::read_manifest(a),
                                           of_b = golden::read_manifest(b);
  const golden::ManifestEntry *left_entry = golden::find_entry(of_a, case_name, true),
                              *right_entry = golden::find_entry(of_b, case_name, true);
  if (left_entry != nullptr && right_entry != nullptr)
    return diff_training(*left_entry, a, *right_entry, b);
  if (left_entry != nullptr || right_entry != nullptr) {
    std::cout << case_name << ": " << (left_entry != nullptr ? "removed" : "added") << "\n";
    return false;
  }
  const bool in_a = golden::exists(case_name, a), in_b = golden::exists(case_name, b);
  if (!in_a || !in_b) {
    std::cout << case_name << ": " << (in_a ? "removed" : "added") << "\n";
    return false;
  }
  const golden::Golden left = golden::load(case_name, a), right = golden::load(case_name, b);
  std::vector<Change> changes;
  compare_attributes(left.attributes, right.attributes, changes);
  compare_taps(left.trace, right.trace, changes);
  compare_sketches(left, right, changes);
  print_changes(case_name, changes);
  return changes.empty();
}

}  // namespace

ExitCode golden_verify_command(const fs::path& directory) {
  const std::vector<golden::ManifestEntry> entries = golden::read_manifest(directory);
  if (entries.empty()) {
    std::cout << "nothing to verify: " << (directory / "manifest.json").string()
              << " lists no file\n";
    return ExitCode::nothing;
  }
  size_t good = 0;
  for (const golden::ManifestEntry& entry : entries) good += verify_entry(entry, directory) ? 1 : 0;
  const std::vector<std::string> unlisted = unlisted_files(entries, directory),
                                 absent = absent_cases(entries);
  for (const std::string& name : unlisted)
    std::cout << "UNLISTED  " << name << " is not in manifest.json\n";
  for (const std::string& name : absent) std::cout << "ABSENT    " << name << " has no golden\n";
  const bool whole = good == entries.size() && unlisted.empty() && absent.empty();
  std::cout << (whole ? "PASS" : "FAIL") << " | " << good << " of " << entries.size()
            << " goldens are whole\n";
  return whole ? ExitCode::ok : ExitCode::artefact;
}

ExitCode golden_show_command(const std::string& name, const fs::path& directory) {
  const std::vector<golden::ManifestEntry> entries = golden::read_manifest(directory);
  if (const golden::ManifestEntry* entry = golden::find_entry(entries, name, true)) {
    const golden::TrainingGolden golden = load_entry(*entry, directory);
    std::cout << "golden " << golden.name << " (train, dialect " << golden.dialect << ", "
              << versions_of(golden.attributes, name) << ")\nprovenance\n";
    show_attributes(golden.attributes);
    show_content(golden);
    return ExitCode::ok;
  }
  const golden::Golden golden = golden::load(name, directory);
  std::cout << "golden " << golden.case_name << " (" << golden.kind << ", dialect "
            << golden.dialect << ", " << versions_of(golden.attributes, name) << ")\nprovenance\n";
  show_attributes(golden.attributes);
  std::cout << "inputs\n";
  for (const auto& [input, values] : golden.inputs) {
    std::cout << "  " << std::left << std::setw(20) << input << " " << values.size() << " values\n";
  }
  std::cout << "taps\n";
  show_taps(golden);
  return ExitCode::ok;
}

ExitCode golden_diff_command(const fs::path& a, const fs::path& b) {
  std::vector<std::string> names;
  for (const fs::path& directory : {a, b}) {
    for (const golden::ManifestEntry& entry : golden::read_manifest(directory)) {
      const bool known = std::find(names.begin(), names.end(), entry.case_name) != names.end();
      if (!known) names.push_back(entry.case_name);
    }
  }
  if (names.empty()) return ExitCode::nothing;
  bool same = true;
  for (const std::string& name : names) same = diff_case(name, a, b) && same;
  return same ? ExitCode::ok : ExitCode::parity;
}

}  // namespace dsv32::harness
