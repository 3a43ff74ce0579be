#include "harness/cases/candidate.h"

#include <algorithm>

#include "harness/cases/stored_dtype.h"
#include "harness/cases/world.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

std::string loading_note(const io::CandidateNotes::LoadedWeights& w) {
  std::string note = std::to_string(w.identical) + " tensors identical to the checkpoint";
  const auto list = [&](const char* what, const std::vector<std::string>& names) {
    if (names.empty()) return;
    note += "; " + std::to_string(names.size()) + " " + what + ":";
    for (size_t i = 0; i < std::min<size_t>(names.size(), 4); ++i) note += " " + names[i];
    if (names.size() > 4) note += " ...";
  };
  list("different (re-initialised, transposed or rounded after loading)", w.different);
  list("missing (never loaded)", w.missing);
  list("unexpected", w.unexpected);
  return note;
}

std::string failure_note(const io::CandidateNotes::Failure& failure) {
  std::string text = "crashed in " + failure.where + ": " + failure.message;
  const size_t folder = failure.raised_at.find_last_of('/');
  if (!failure.raised_at.empty())
    text += ", at " + failure.raised_at.substr(folder == std::string::npos ? 0 : folder + 1);
  return failure.shapes.empty() || failure.shapes == "[]"
             ? text
             : text + " (inputs of shapes " + failure.shapes + ")";
}

/// The file's name; its whole path where another candidate has the same name.
std::string name_of(const std::filesystem::path& path,
                    const std::vector<std::filesystem::path>& all) {
  const auto alike = std::count_if(all.begin(), all.end(), [&](const std::filesystem::path& other) {
    return other.filename() == path.filename();
  });
  return alike > 1 ? path.string() : path.filename().string();
}

Candidate candidate_of(const std::filesystem::path& path, const std::string& name, Trace trace) {
  Case c = io::case_of_trace(trace);
  std::string mode = trace.metadata.at("mode");
  const Subject subject{.party = Party::candidate,
                        .label = "candidate " + name,
                        .against = mode == "train" ? Against::golden : Against::oracle};
  return {path, std::move(trace), std::move(c), subject, std::move(mode)};
}

}  // namespace

Objective objective_of_mode(const std::string& mode) {
  if (mode == "kl-warmup") return {.lm = false, .kl = KlStage::warmup};
  if (mode == "kl-sparse") return {.lm = false, .kl = KlStage::sparse};
  return {};
}

std::vector<std::filesystem::path> candidate_files(
    const std::vector<std::filesystem::path>& given) {
  std::vector<std::filesystem::path> paths;
  for (const auto& path : given) {
    if (!std::filesystem::is_directory(path)) {
      paths.push_back(path);
      continue;
    }
    std::vector<std::filesystem::path> inside;
    for (const auto& entry : std::filesystem::directory_iterator(path))
      if (entry.path().extension() == ".safetensors") inside.push_back(entry.path());
    if (inside.empty())
      throw Error(ExitCode::artefact, {.where = path.string(),
                                       .what = "candidate",
                                       .expected = "trace files, *.safetensors, in this folder",
                                       .got = "none"});
    std::sort(inside.begin(), inside.end());
    paths.insert(paths.end(), inside.begin(), inside.end());
  }
  return paths;
}

std::vector<Candidate> read_candidates(const std::vector<std::filesystem::path>& given) {
  const std::vector<std::filesystem::path> paths = candidate_files(given);
  std::vector<Candidate> candidates;
  std::map<std::filesystem::path, std::vector<RankFile>> worlds;  // by folder
  for (const auto& path : paths) {
    io::TracePart part = io::read_trace_part(path);
    if (part.world > 1 || !part.placements.empty()) {
      worlds[path.parent_path()].push_back({path, std::move(part)});
    } else {
      candidates.push_back(candidate_of(path, name_of(path, paths), std::move(part.trace)));
    }
  }
  for (auto& [folder, files] : worlds) {
    const std::string name = folder.empty() ? "of the ranks" : folder.filename().string();
    const std::string ranks = " (" + std::to_string(files.size()) + " ranks)";
    const auto lowest =
        std::min_element(files.begin(), files.end(),
                         [](const auto& a, const auto& b) { return a.part.rank < b.part.rank; });
    Candidate candidate = candidate_of(lowest->path, name + ranks, lowest->part.trace);
    JoinedWorld world = join_world(std::move(files), candidate.the_case, candidate.subject);
    candidate.trace = std::move(world.trace);
    candidate.pieces = std::move(world.pieces);
    candidate.sums = std::move(world.sums);
    candidate.world = std::move(world.verdicts);
    candidates.push_back(std::move(candidate));
  }
  return candidates;
}

void check_weights_identity(const Candidate& candidate, const WeightSource& weights) {
  const std::string& said = candidate.trace.metadata.at("weights");
  const std::string expected = weights.identity();
  if (said == expected) return;
  throw Error(ExitCode::artefact,
              {.where = candidate.path.string(),
               .what = "metadata weights",
               .expected = expected,
               .got = said,
               .hint = said.starts_with("synthetic")
                           ? "--weights " + said
                           : "name the checkpoint that the candidate used with --weights DIR"});
}

std::vector<Verdict> verdicts_on_loading(const Candidate& candidate,
                                         const io::CandidateNotes& notes) {
  std::vector<Verdict> verdicts;
  const auto check = [&](const char* what, bool good, const std::string& note, int64_t checked) {
    verdicts.push_back({.subject = candidate.subject,
                        .tap = rule_name(what),
                        .mode = Mode::exact,
                        .trust = good ? Trust::pass : Trust::fail,
                        .checked = checked,
                        .note = note});
  };
  if (notes.failure) check("run.finished", false, failure_note(*notes.failure), 1);
  if (notes.weights) {
    const auto& w = *notes.weights;
    const int64_t all = w.identical + static_cast<int64_t>(w.different.size() + w.missing.size());
    check("load.weights", w.all_there(), loading_note(w), all);
  }
  const std::string wrong = dtype_contradiction(
      candidate.trace, stored_type(parse_dtype(candidate.trace.metadata.at("dtype"))));
  if (!wrong.empty()) check("load.dtype", false, wrong, 1);
  verdicts.insert(verdicts.end(), candidate.world.begin(), candidate.world.end());
  return verdicts;
}

}  // namespace dsv32::harness
