#include "golden/reader/pinned.h"

#include <algorithm>

#include "golden/reader/layout.h"
#include "src/io/io.h"
#include "src/io/text.h"

namespace dsv32::golden {
namespace {

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& what,
                         const std::string& expected, const std::string& got) {
  io::refuse(
      {.where = path.string(), .what = what, .expected = expected, .got = io::printable(got)});
}

}  // namespace

std::mutex& hdf5_mutex() {
  static std::mutex mutex;
  return mutex;
}

bool is_training(const ManifestEntry& entry) { return entry.kind == "train"; }

const ManifestEntry* find_entry(const std::vector<ManifestEntry>& entries, const std::string& name,
                                bool training) {
  const auto it = std::find_if(entries.begin(), entries.end(), [&](const ManifestEntry& e) {
    return e.case_name == name && is_training(e) == training;
  });
  return it == entries.end() ? nullptr : &*it;
}

bool is_there(const std::filesystem::path& directory, const std::string& name, bool training) {
  if (!std::filesystem::exists(directory / "manifest.json")) return false;
  const std::vector<ManifestEntry> entries = read_manifest(directory);
  const ManifestEntry* entry = find_entry(entries, name, training);
  return entry != nullptr && std::filesystem::exists(directory / entry->file);
}

void refuse_unknown(const std::vector<ManifestEntry>& entries, const std::string& name,
                    bool training) {
  std::vector<std::string> known;
  for (const ManifestEntry& entry : entries) {
    if (is_training(entry) == training) known.push_back(entry.case_name);
  }
  const std::string near = nearest(name, known);
  throw Error(ExitCode::usage, {.where = "golden",
                                .what = training ? "training golden" : "case",
                                .expected = "one of " + io::listed(known),
                                .got = io::printable(name),
                                .hint = near.empty() ? "" : "did you mean " + near + "?"});
}

std::string pinned_bytes(const std::filesystem::path& path, const ManifestEntry& entry) {
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(path, error);
  if (error) {
    refuse(path, "file",
           (is_training(entry) ? "the training golden " : "the golden of case ") + entry.case_name,
           error.message());
  }
  if (size != entry.size) {
    refuse(path, "size", std::to_string(entry.size) + " bytes (manifest.json)",
           std::to_string(size));
  }
  std::string bytes = io::read_file(path, kMaxFileBytes);
  const std::string hash = io::sha256_hex(bytes.data(), bytes.size());
  if (hash != entry.sha256) refuse(path, "sha256", entry.sha256 + " (manifest.json)", hash);
  return bytes;
}

}  // namespace dsv32::golden
