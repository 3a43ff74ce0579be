#include "src/io/checkpoint/files.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <optional>

#include "src/io/json.h"
#include "src/io/text.h"
#include "src/io/volume/patience.h"
#include "src/model/at_once.h"

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

/// Throws the one Error, or all of them in one; first of all one that speaks of the volume.
void require_opened(const std::vector<Error>& errors, const fs::path& dir, size_t count) {
  if (errors.empty()) return;
  for (const Error& error : errors)
    if (error.code() == ExitCode::environment) throw error;
  if (errors.size() == 1) throw errors.front();
  constexpr size_t kShown = 5;
  std::string texts;
  for (size_t i = 0; i < std::min(kShown, errors.size()); ++i)
    texts += (i > 0 ? " | " : "") + std::string(errors[i].what());
  if (errors.size() > kShown)
    texts += " | ... and " + std::to_string(errors.size() - kShown) + " more";
  refuse({.where = dir.string(),
          .what = "shards",
          .expected = std::to_string(count) + " that can be read",
          .got = std::to_string(errors.size()) + " that cannot: " + texts});
}

/// Opens these files of a folder, several at a time: each takes some round trips to its volume.
/// `check` may throw Error as well. What is wrong with them comes together.
std::vector<SafetensorsFile> open_all(
    const fs::path& dir, const std::vector<std::string>& names,
    const std::function<void(const SafetensorsFile&)>& check = [](const SafetensorsFile&) {}) {
  std::vector<std::optional<SafetensorsFile>> opened(names.size());
  std::vector<std::optional<Error>> failed(names.size());
  const auto open = [&](size_t i) {
    try {
      SafetensorsFile file(dir / names[i]);
      check(file);
      opened[i].emplace(std::move(file));
    } catch (const Error& error) {
      failed[i] = error;
    }
  };
  at_once(names.size(), open, kVolumeThreads);
  std::vector<Error> errors;
  for (const auto& error : failed)
    if (error) errors.push_back(*error);
  require_opened(errors, dir, names.size());
  std::vector<SafetensorsFile> files;
  for (auto& file : opened) files.push_back(std::move(*file));
  return files;
}

std::vector<SafetensorsFile> open_shards(const fs::path& dir) {
  const fs::path path = dir / kIndexFile;
  const Index index = read_index(path);
  std::vector<std::string> names;
  for (const auto& [shard, tensors] : index.shards) names.push_back(shard);
  std::vector<SafetensorsFile> files = open_all(dir, names, [&](const SafetensorsFile& file) {
    check_shard(file, index.shards.at(file.path().filename().string()), kIndexFile);
  });
  check_total_size(index, files, path.string());
  return files;
}

/// The number of ranks in "model0-mp8.safetensors"; 0 for any other name.
int64_t ranks_in(const std::string& name) {
  constexpr std::string_view kFirst = "model0-mp", kEnd = ".safetensors";
  if (!name.starts_with(kFirst) || !name.ends_with(kEnd)) return 0;
  const std::string digits = name.substr(kFirst.size(), name.size() - kFirst.size() - kEnd.size());
  int64_t ranks = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), ranks);
  const bool plain = error == std::errc() && std::to_string(ranks) == digits;
  return plain && ranks > 0 && end == digits.data() + digits.size() ? ranks : 0;
}

/// 0 where the folder holds no part of rank 0.
int64_t ranks_of(const fs::path& dir) {
  std::error_code error;
  int64_t ranks = 0;
  for (const auto& entry : fs::directory_iterator(dir, error)) {
    const int64_t found = ranks_in(entry.path().filename().string());
    if (found > 0 && ranks > 0)
      refuse({.where = dir.string(),
              .what = "shards of ranks",
              .expected = "those of one world size",
              .got = "mp" + std::to_string(std::min(ranks, found)) + " and mp" +
                     std::to_string(std::max(ranks, found))});
    ranks = std::max(ranks, found);
  }
  return ranks;
}

CheckpointFiles open_ranks(const fs::path& dir, int64_t ranks) {
  std::vector<std::string> names;
  for (int64_t rank = 0; rank < ranks; ++rank) names.push_back(demo_shard_name(rank, ranks));
  return {open_all(dir, names), ranks};
}

/// A folder that cannot be looked into because its volume is gone is no wrong folder.
void refuse_lost_volume(const fs::path& dir) {
  struct stat now = {};
  const Outcome outcome = patiently([&] { return ::stat(dir.c_str(), &now) == 0; });
  if (is_of_volume(outcome.error))
    throw Error(ExitCode::environment, {.where = dir.string(),
                                        .what = "volume",
                                        .expected = "a folder that can be read",
                                        .got = reason(outcome)});
}

}  // namespace

std::string demo_shard_name(int64_t rank, int64_t ranks) {
  return "model" + std::to_string(rank) + "-mp" + std::to_string(ranks) + ".safetensors";
}

CheckpointFiles open_checkpoint_files(const fs::path& dir) {
  std::error_code error;
  // The order of Hugging Face's from_pretrained.
  if (fs::exists(dir / kSingleFile, error)) {
    CheckpointFiles single;
    single.files.emplace_back(dir / kSingleFile);
    return single;
  }
  if (fs::exists(dir / kIndexFile, error)) return {open_shards(dir)};
  if (const int64_t ranks = ranks_of(dir); ranks > 0) return open_ranks(dir, ranks);
  refuse_lost_volume(dir);
  refuse({.where = dir.string(),
          .what = "checkpoint",
          .expected = std::string(kSingleFile) + ", " + kIndexFile + " or " + demo_shard_name(0, 1),
          .got = fs::is_directory(dir, error) ? "a folder without any" : "no folder of that name",
          .hint = "dsv32-verify weights make writes a synthetic checkpoint"});
}

}  // namespace dsv32::io
