#include <algorithm>
#include <set>

#include "golden/reader/golden.h"
#include "golden/reader/layout.h"
#include "src/io/io.h"
#include "src/io/json.h"
#include "src/io/text.h"

namespace dsv32::golden {
namespace {

constexpr uint64_t kMaxManifestBytes = 1 << 20;

[[noreturn]] void refuse(const std::string& where, const std::string& what,
                         const std::string& expected, const std::string& got) {
  io::refuse({.where = where,
              .what = what,
              .expected = expected,
              .got = io::printable(got),
              .hint = "docs/formats.md 8.1 tells the format"});
}

const io::Json& field(const io::Json& object, const std::string& key, const std::string& where) {
  if (!object.is_object()) refuse(where, "entry", "an object", io::kind_of(object));
  const auto it = object.find(key);
  if (it == object.end()) refuse(where, key, "this field", "none");
  return *it;
}

std::string text(const io::Json& object, const std::string& key, const std::string& where) {
  const io::Json& value = field(object, key, where);
  if (!value.is_string()) refuse(where, key, "a string", io::kind_of(value));
  return value.get<std::string>();
}

uint64_t unsigned_number(const io::Json& object, const std::string& key, const std::string& where) {
  const io::Json& value = field(object, key, where);
  if (!value.is_number_unsigned()) refuse(where, key, "a number", io::kind_of(value));
  return value.get<uint64_t>();
}

/// A plain name: no directory part, nothing hidden, only harmless characters.
bool is_plain_file(const std::string& name) {
  const auto harmless = [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
  };
  return !name.empty() && name[0] != '.' && name.size() <= 128 && name.ends_with(".h5") &&
         std::all_of(name.begin(), name.end(), harmless);
}

bool is_sha256(const std::string& text) {
  const auto hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  return text.size() == 64 && std::all_of(text.begin(), text.end(), hex);
}

ManifestEntry parse_entry(const io::Json& json, const std::string& where) {
  ManifestEntry entry{.case_name = text(json, "case", where),
                      .file = text(json, "file", where),
                      .kind = text(json, "kind", where),
                      .sha256 = text(json, "sha256", where),
                      .size = unsigned_number(json, "size", where)};
  if (!is_plain_file(entry.file)) refuse(where, "file", "a plain file name NAME.h5", entry.file);
  if (!is_sha256(entry.sha256)) refuse(where, "sha256", "64 lower-case hex digits", entry.sha256);
  const std::set<std::string> kinds = {"full", "sketch", "generate", "train"};
  if (!kinds.contains(entry.kind))
    refuse(where, "kind", "full, sketch, generate or train", entry.kind);
  if (entry.size == 0 || entry.size > kMaxFileBytes) {
    refuse(where, "size", "1 to " + std::to_string(kMaxFileBytes) + " bytes",
           std::to_string(entry.size));
  }
  return entry;
}

}  // namespace

std::filesystem::path default_directory() { return io::home() / "golden" / "data"; }

std::vector<ManifestEntry> read_manifest(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "manifest.json";
  const std::string where = path.string();
  const io::Json json = io::parse_json(io::read_file(path, kMaxManifestBytes), where);
  if (text(json, "format", where) != kManifestFormat) {
    refuse(where, "format", kManifestFormat, text(json, "format", where));
  }
  if (unsigned_number(json, "version", where) != kVersion) {
    refuse(where, "version", std::to_string(kVersion),
           std::to_string(unsigned_number(json, "version", where)));
  }
  const io::Json& files = field(json, "files", where);
  if (!files.is_array()) refuse(where, "files", "an array", io::kind_of(files));
  std::vector<ManifestEntry> entries;
  std::set<std::string> cases, names;
  for (const io::Json& file : files) {
    entries.push_back(parse_entry(file, where));
    const ManifestEntry& entry = entries.back();
    if (!cases.insert(entry.case_name).second)
      refuse(where, "files", "each case once", entry.case_name);
    if (!names.insert(entry.file).second) refuse(where, "files", "each file once", entry.file);
  }
  return entries;
}

}  // namespace dsv32::golden
