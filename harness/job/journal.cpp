#include "harness/job/journal.h"

#include <cstdio>
#include <utility>

#include "harness/report/report.h"
#include "src/io/io.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

constexpr char kFormat[] = "dsv32-verify.journal", kVerdicts[] = "verdicts";
constexpr char kSegments[] = "segments", kStaged[] = "staged", kForced[] = "forced";

/// The verdicts of every subject as one report: the subject's number stands for the case, the list
/// for the suite.
std::string verdicts_text(const LayerProgress& progress) {
  Report report;
  const auto add = [&](const std::vector<std::vector<Verdict>>& lists, const char* list) {
    for (size_t i = 0; i < lists.size(); ++i)
      for (Verdict verdict : lists[i]) {
        verdict.case_name = std::to_string(i);
        verdict.suite = list;
        report.verdicts.push_back(std::move(verdict));
      }
  };
  add(progress.staged, kStaged);
  add(progress.forced, kForced);
  return to_json(report);
}

void read_verdicts(const std::string& text, const std::string& where, size_t subjects,
                   LayerProgress& progress) {
  progress.staged.resize(subjects);
  progress.forced.resize(subjects);
  for (Verdict& verdict : parse_report(text, where).verdicts) {
    auto& lists = verdict.suite == kStaged ? progress.staged : progress.forced;
    std::vector<Verdict>& list = lists.at(std::stoul(verdict.case_name));
    verdict.case_name = verdict.suite = "";
    list.push_back(std::move(verdict));
  }
}

}  // namespace

Journal::Journal(const std::filesystem::path& folder, const std::string& case_name,
                 std::map<std::string, std::string> made_with)
    : path_(folder / (case_name + ".journal")), made_with_(std::move(made_with)) {
  made_with_["format"] = kFormat;
}

LayerProgress Journal::read() const {
  if (!std::filesystem::exists(path_)) {
    throw Error(ExitCode::usage, {.where = "--resume",
                                  .what = "nothing to go on from",
                                  .expected = path_.string(),
                                  .got = "no such file",
                                  .hint = "the first run of a job goes without --resume"});
  }
  const io::SafetensorsFile file(path_);
  const auto& metadata = file.metadata();
  const auto word = [&](const std::string& key) {
    const auto found = metadata.find(key);
    return found == metadata.end() ? std::string() : found->second;
  };
  for (const auto& [key, value] : made_with_) {
    if (word(key) == value) continue;
    throw Error(ExitCode::usage, {.where = "--resume: " + path_.string(),
                                  .what = "made by another job: its " + key,
                                  .expected = value,
                                  .got = word(key).empty() ? "none" : word(key),
                                  .hint = "leave --resume away to start anew"});
  }
  LayerProgress progress{.segments = std::stoul(word(kSegments))};
  read_verdicts(word(kVerdicts), path_.string(), std::stoul(word("subjects")), progress);
  for (const auto& [name, entry] : file.tensors()) progress.streams[name] = file.read(name);
  return progress;
}

void Journal::write(const LayerProgress& progress, size_t all) const {
  std::map<std::string, std::string> metadata = made_with_;
  metadata[kSegments] = std::to_string(progress.segments);
  metadata["subjects"] = std::to_string(progress.staged.size());
  metadata[kVerdicts] = verdicts_text(progress);
  std::vector<std::pair<std::string, io::TensorEntry>> specs;
  if (progress.segments < all)
    for (const auto& [name, value] : progress.streams)
      specs.push_back({name, {.dtype = value.dtype(), .shape = value.shape()}});
  io::SafetensorsWriter writer(path_, metadata, specs);
  for (const auto& [name, entry] : specs) writer.append(progress.streams.at(name));
  writer.finish();
}

Heartbeat::Heartbeat(const std::filesystem::path& folder, std::string case_name)
    : path_(folder.empty() ? folder : folder / "heartbeat.json"),
      case_name_(std::move(case_name)) {}

void Heartbeat::beat(const std::string& what) {
  constexpr std::chrono::minutes kBeat(1);
  what_ = what;
  if (Clock::now() - written_ >= kBeat) write();
}

void Heartbeat::finished(const SegmentCost& cost) {
  if (of_ == 0) first_ = cost.done - 1;
  done_ = cost.done, of_ = cost.of;
  write();
}

void Heartbeat::write() {
  if (path_.empty()) return;
  written_ = Clock::now();
  const double seconds = std::chrono::duration<double>(written_ - start_).count();
  const double rate = static_cast<double>(done_ - first_) / seconds;
  const double left = rate > 0 ? static_cast<double>(of_ - done_) / rate : 0;
  char text[512];
  std::snprintf(text, sizeof text,
                "{\"case\": \"%s\", \"segments_done\": %zu, \"segments\": %zu, \"seconds\": %.0f, "
                "\"segments_per_hour\": %.2f, \"seconds_left\": %.0f, \"now\": \"%s\"}\n",
                case_name_.c_str(), done_, of_, seconds, 3600 * rate, left, what_.c_str());
  io::write_file(path_, text);
}

}  // namespace dsv32::harness
