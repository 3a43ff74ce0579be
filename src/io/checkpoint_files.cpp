#include "src/io/checkpoint.h"
#include "src/io/json.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

constexpr uint64_t kIndexLimit = uint64_t{64} << 20;  // bytes; the released model has 9 MiB

struct Index {
  std::map<std::string, std::map<std::string, bool>> shards;  // shard -> names that it must hold
  Json total_size;                                            // null when the index has none
};

void check_base_name(const std::string& shard, const std::string& where) {
  using namespace std::string_view_literals;
  const bool plain = !shard.empty() && shard != "." && shard != ".." &&
                     shard.find_first_of("/\\\0"sv) == std::string::npos;
  if (!plain)
    refuse({.where = where,
            .what = "weight_map",
            .expected = "file names without a folder",
            .got = printable(shard)});
}

Index read_index(const fs::path& path) {
  const std::string where = path.string();
  const Json json = parse_json(read_file(path, kIndexLimit), where);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object())
    refuse({.where = where, .what = "weight_map", .expected = "an object", .got = "none"});
  Index index;
  for (const auto& [name, shard] : json["weight_map"].items()) {
    if (!shard.is_string())
      refuse({.where = where,
              .what = "weight_map." + printable(name),
              .expected = "a file name",
              .got = kind_of(shard)});
    check_base_name(shard.get_ref<const std::string&>(), where);
    index.shards[shard.get<std::string>()][name] = true;
  }
  if (json.contains("metadata") && json["metadata"].is_object())
    index.total_size = json["metadata"].value("total_size", Json());
  return index;
}

/// A shard holds exactly the tensors that the index places there.
void check_shard(const SafetensorsFile& file, const std::map<std::string, bool>& wanted,
                 const std::string& index) {
  std::vector<std::string> missing, unlisted;
  for (const auto& [name, listed] : wanted)
    if (!file.tensors().contains(name)) missing.push_back(name);
  for (const auto& [name, entry] : file.tensors())
    if (!wanted.contains(name)) unlisted.push_back(name);
  if (missing.empty() && unlisted.empty()) return;
  refuse({.where = file.path().string(),
          .what = "tensors",
          .expected = "exactly those that " + index + " lists for it",
          .got = "missing " + listed(missing) + "; not listed " + listed(unlisted)});
}

void check_total_size(const Index& index, const std::vector<SafetensorsFile>& files,
                      const std::string& where) {
  if (index.total_size.is_null()) return;
  uint64_t total = 0;
  for (const SafetensorsFile& file : files)
    for (const auto& [name, entry] : file.tensors()) total += entry.end - entry.begin;
  if (index.total_size != total)
    refuse({.where = where,
            .what = "metadata.total_size",
            .expected = std::to_string(total) + ", the sum over the shards",
            .got = kind_of(index.total_size)});
}

std::vector<SafetensorsFile> open_shards(const fs::path& dir) {
  const fs::path path = dir / kIndexFile;
  const Index index = read_index(path);
  std::vector<SafetensorsFile> files;
  for (const auto& [shard, names] : index.shards) {
    files.emplace_back(dir / shard);
    check_shard(files.back(), names, kIndexFile);
  }
  check_total_size(index, files, path.string());
  return files;
}

}  // namespace

std::vector<SafetensorsFile> open_checkpoint_files(const fs::path& dir) {
  std::error_code error;
  // The order of Hugging Face's from_pretrained.
  if (fs::exists(dir / kSingleFile, error)) {
    std::vector<SafetensorsFile> files;
    files.emplace_back(dir / kSingleFile);
    return files;
  }
  if (fs::exists(dir / kIndexFile, error)) return open_shards(dir);
  refuse(
      {.where = dir.string(),
       .what = "checkpoint",
       .expected = std::string(kSingleFile) + " or " + kIndexFile,
       .got = fs::is_directory(dir, error) ? "a folder without either" : "no folder of that name",
       .hint = "dsv32-verify weights make writes a synthetic checkpoint"});
}

}  // namespace dsv32::io
