#include "src/io/volume/copy_files.h"

#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "src/io/checkpoint/files.h"
#include "src/io/fields.h"
#include "src/io/file.h"
#include "src/io/io.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

constexpr uint64_t kSmall = uint64_t{64} << 20;  // bytes; tokenizers have up to 20 MiB
constexpr char kRecordFile[] = "copy.json";

/// Weights of another format, or of nobody: large, and not read.
bool is_other_weights(const std::string& name) {
  for (const char* end : {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ggml", ".h5",
                          ".msgpack", ".onnx", ".ckpt", ".npz"})
    if (name.ends_with(end)) return true;
  return false;
}

bool is_within(const fs::path& path, const fs::path& folder) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first ==
         folder.end();
}

/// models--ORG--NAME/snapshots/REVISION of a Hugging Face cache holds links into ../../blobs.
fs::path blobs_of(const fs::path& folder) {
  const fs::path snapshots = folder.parent_path();
  return snapshots.filename() == "snapshots" ? snapshots.parent_path() / "blobs" : fs::path();
}

void check_link(const fs::path& path) {
  std::error_code error;
  if (!fs::is_symlink(fs::symlink_status(path, error))) return;
  const fs::path target = fs::canonical(path, error), folder = fs::canonical(path.parent_path());
  const fs::path blobs = blobs_of(folder);
  if (!error && (is_within(target, folder) || (!blobs.empty() && is_within(target, blobs)))) return;
  refuse({.where = path.string(),
          .what = "link",
          .expected = "a file of its own folder, or of a Hugging Face cache",
          .got = error ? error.message() : "one that leads to " + printable(target.string())});
}

SourceFile described(const fs::path& path, bool weights) {
  const InputFile file(path);
  return {.name = path.filename().string(),
          .size = file.size(),
          .changed_at = file.changed_at(),
          .weights = weights};
}

/// Small files beside the weights.
void add_companions(const fs::path& from, const std::set<std::string>& weights, SourceFiles& all) {
  std::vector<fs::path> entries;
  for (const auto& entry : fs::directory_iterator(from)) entries.push_back(entry.path());
  std::sort(entries.begin(), entries.end());
  for (const fs::path& path : entries) {
    const std::string name = path.filename().string();
    if (name.starts_with(".") || weights.contains(name) || name == kIndexFile) continue;
    std::error_code error;
    const bool taken = fs::is_regular_file(path, error) && !is_other_weights(name) &&
                       fs::file_size(path, error) <= kSmall;
    if (taken) {
      check_link(path);
      all.files.push_back(described(path, false));
    } else {
      all.left_out.push_back(name);
    }
  }
}

}  // namespace

SourceFiles source_files(const fs::path& from) {
  const CheckpointFiles checkpoint = open_checkpoint_files(from);
  std::set<std::string> weights;
  for (const SafetensorsFile& file : checkpoint.files)
    weights.insert(file.path().filename().string());
  const bool indexed = !weights.contains(kSingleFile) && fs::exists(from / kIndexFile);
  SourceFiles all;
  add_companions(from, weights, all);
  // Of ranks the first one makes a checkpoint: it comes last.
  for (auto it = checkpoint.files.rbegin(); it != checkpoint.files.rend(); ++it) {
    check_link(it->path());
    all.files.push_back(described(it->path(), true));
  }
  if (indexed) {
    check_link(from / kIndexFile);
    all.files.push_back(described(from / kIndexFile, false));
  }
  return all;
}

void require_apart(const fs::path& from, const fs::path& to) {
  std::error_code error;
  for (fs::path at = fs::weakly_canonical(to);; at = at.parent_path()) {
    if (fs::exists(at, error) && fs::equivalent(at, from, error))
      throw Error(ExitCode::usage,
                  {.where = to.string(),
                   .what = "folder of the copy",
                   .expected = "one outside of " + from.string(),
                   .got = at == fs::weakly_canonical(to) ? "the folder itself" : "a folder in it"});
    if (at == at.parent_path()) return;
  }
}

CopyFolders::CopyFolders(const fs::path& to)
    : root(to / ".dsv32-copy"),
      parts(root / "parts"),
      blocks(root / "blocks"),
      checked(root / "checked") {}

CopyRecord::CopyRecord(const fs::path& to, const fs::path& from)
    : path_(CopyFolders(to).root / kRecordFile), source_(fs::canonical(from).string()) {
  std::error_code error;
  if (!fs::exists(path_, error)) return;
  new_ = false;
  const Json json = parse_json(read_file(path_), path_.string());
  const std::string where = path_.string();
  const std::string source = Fields(json, where).text("source");
  if (source != source_)
    throw Error(ExitCode::usage, {.where = to.string(),
                                  .what = "folder of the copy",
                                  .expected = "an empty one, or the copy of " + source_,
                                  .got = "a copy of " + printable(source)});
  if (!json.contains("files") || !json["files"].is_object())
    refuse({.where = where, .what = "files", .expected = "an object", .got = "none"});
  for (const auto& [name, value] : json["files"].items()) {
    if (!value.is_object())
      refuse({.where = where, .what = printable(name), .expected = "an object", .got = "none"});
    const Fields fields(value, where, name + ".");
    entries_[name] = {.size = static_cast<uint64_t>(fields.integer("size")),
                      .source_changed_at = fields.integer("source_changed_at"),
                      .changed_at = fields.integer("changed_at"),
                      .digest = fields.text("digest")};
  }
}

const CopyRecord::Entry* CopyRecord::of(const SourceFile& file) const {
  const auto found = entries_.find(file.name);
  const bool same = found != entries_.end() && found->second.size == file.size &&
                    found->second.source_changed_at == file.changed_at;
  return same ? &found->second : nullptr;
}

void CopyRecord::put(const std::string& name, const Entry& entry) {
  entries_[name] = entry;
  write();
}

void CopyRecord::drop(const std::string& name) {
  entries_.erase(name);
  write();
}

void CopyRecord::write() const {
  Json files = Json::object();
  for (const auto& [name, entry] : entries_)
    files[name] = {{"size", entry.size},
                   {"source_changed_at", entry.source_changed_at},
                   {"changed_at", entry.changed_at},
                   {"digest", entry.digest}};
  write_file(path_, Json{{"source", source_}, {"files", files}}.dump(1) + "\n");
}

bool is_file_of(const fs::path& path, uint64_t size, int64_t changed_at) {
  constexpr int64_t kNanoseconds = 1'000'000'000;
  struct stat now = {};
  return ::lstat(path.c_str(), &now) == 0 && S_ISREG(now.st_mode) &&
         static_cast<uint64_t>(now.st_size) == size &&
         int64_t{now.st_mtim.tv_sec} * kNanoseconds + now.st_mtim.tv_nsec == changed_at;
}

}  // namespace dsv32::io
