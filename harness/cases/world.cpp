#include "harness/cases/world.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "harness/judge/limits.h"
#include "harness/judge/measure/rows.h"
#include "src/model/batch.h"
#include "src/model/check_name.h"
#include "src/model/lora.h"

namespace dsv32::harness {
namespace {

using Kind = io::Placement::Kind;

[[noreturn]] void refuse(const RankFile& file, const std::string& what, const std::string& expected,
                         const std::string& got, const std::string& hint = "") {
  throw Error(
      ExitCode::artefact,
      {.where = file.path.string(), .what = what, .expected = expected, .got = got, .hint = hint});
}

io::Placement placement(const RankFile& file, const std::string& name) {
  const auto found = file.part.placements.find(name);
  return found == file.part.placements.end() ? io::Placement{} : found->second;
}

std::string words(const io::Placement& placement) {
  if (placement.kind == Kind::replicated) return "replicated";
  if (placement.kind == Kind::partial) return "partial";
  return "a piece along axis " + std::to_string(placement.dim);
}

/// Of a tap, of a gradient by a tap, of a gradient of a weight or an update.
const HostTensor* find(const RankFile& file, const std::string& name) {
  const auto slope = parse_slope(name);
  if (!slope) return file.part.trace.find(name);
  const auto found = file.part.trace.slopes.find(slope->full);
  return found == file.part.trace.slopes.end() ? nullptr : &found->second;
}

/// Elements of one index of the axes before `dim`, and how many such indices there are.
struct Blocks {
  int64_t count = 1, inner = 1;
  Blocks(const Shape& shape, int64_t dim) {
    for (size_t axis = 0; axis < shape.size(); ++axis)
      (static_cast<int64_t>(axis) < dim ? count : inner) *=
          static_cast<int64_t>(axis) == dim ? 1 : shape[axis];
  }
};

class World {
 public:
  World(std::vector<RankFile> files, const Case& c, const Subject& subject)
      : files_(std::move(files)), case_(c), subject_(subject) {
    std::sort(files_.begin(), files_.end(),
              [](const RankFile& a, const RankFile& b) { return a.part.rank < b.part.rank; });
  }

  JoinedWorld join() {
    check_ranks();
    check_metadata();
    JoinedWorld out;
    out.trace.metadata = files_.front().part.trace.metadata;
    for (const char* key : {"rank", "placement"}) out.trace.metadata.erase(key);
    for (const std::string& name : names()) {
      HostTensor whole = joined(name, out);
      if (const auto slope = parse_slope(name)) {
        out.trace.slopes.emplace(slope->full, std::move(whole));
      } else {
        out.trace.put(name, std::move(whole));
      }
    }
    out.verdicts = verdicts();
    return out;
  }

 private:
  // --- do these files belong together? ----------------------------------------------------------

  void check_ranks() const {
    const int64_t world = files_.front().part.world;
    std::set<int64_t> there;
    for (const RankFile& file : files_) {
      if (file.part.world != world)
        refuse(file, "metadata.world",
               std::to_string(world) + ", as " + files_.front().path.string(),
               std::to_string(file.part.world));
      if (!there.insert(file.part.rank).second)
        refuse(file, "metadata.rank", "each rank once",
               "rank " + std::to_string(file.part.rank) + " a second time");
      if (!file.part.trace.sketches.empty())
        refuse(file, "tensor " + file.part.trace.sketches.begin()->first,
               "whole tensors or pieces of them", "a sketch");
    }
    std::string missing;
    for (int64_t rank = 0; rank < world; ++rank)
      if (!there.contains(rank)) missing += (missing.empty() ? "" : ", ") + std::to_string(rank);
    if (!missing.empty())
      refuse(files_.front(), "world", "the files of all " + std::to_string(world) + " ranks",
             "none of rank " + missing, "--candidate FOLDER takes all files of a folder");
  }

  void check_metadata() const {
    const auto& first = files_.front().part.trace.metadata;
    for (const RankFile& file : files_)
      for (const char* key : {"case", "mode", "dtype", "weights", "mask"})
        if (file.part.trace.metadata.at(key) != first.at(key))
          refuse(
              file, "metadata." + std::string(key),
              first.at(key) + ", as rank " + std::to_string(files_.front().part.rank) + " has it",
              file.part.trace.metadata.at(key));
  }

  /// Of all ranks, each in the place where the first rank that has it has it.
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    std::set<std::string> known;
    for (const RankFile& file : files_) {
      for (const std::string& name : file.part.trace.names())
        if (known.insert(name).second) all.push_back(name);
      for (const auto& [tap, slope] : file.part.trace.slopes)
        if (known.insert(slope_name(tap)).second) all.push_back(slope_name(tap));
    }
    return all;
  }

  // --- one tensor -------------------------------------------------------------------------------

  HostTensor joined(const std::string& name, JoinedWorld& out) {
    std::vector<const RankFile*> holders;
    for (const RankFile& file : files_)
      if (find(file, name) != nullptr) holders.push_back(&file);
    const io::Placement first = placement(*holders.front(), name);
    for (const RankFile* file : holders) {
      const io::Placement own = placement(*file, name);
      if (own.kind != first.kind || own.dim != first.dim)
        refuse(*file, "metadata.placement: " + name,
               words(first) + ", as rank " + std::to_string(holders.front()->part.rank),
               words(own));
    }
    if (first.kind == Kind::partial) return sum(name, holders, out.sums[name]);
    if (first.kind == Kind::piece) return assembled(name, holders, first.dim, out.pieces[name]);
    return *find(*agreed(name, holders), name);
  }

  HostTensor sum(const std::string& name, const std::vector<const RankFile*>& holders,
                 std::vector<RankSummand>& summands) const {
    for (const RankFile& file : files_) {
      const HostTensor* part = find(file, name);
      summands.push_back({file.part.rank, part == nullptr ? HostTensor() : *part});
    }
    const HostTensor& one = *find(*holders.front(), name);
    std::vector<double> total(static_cast<size_t>(one.numel()), 0);
    for (const RankFile* file : holders) {
      const HostTensor& part = *find(*file, name);
      for (int64_t i = 0; i < part.numel(); ++i) total[static_cast<size_t>(i)] += part.at(i);
    }
    return HostTensor::from_doubles(one.dtype(), one.shape(), total);
  }

  HostTensor assembled(const std::string& name, const std::vector<const RankFile*>& holders,
                       int64_t dim, std::vector<RankPiece>& pieces) {
    std::map<std::pair<int64_t, int64_t>, std::vector<const RankFile*>> places;
    for (const RankFile* file : holders) {
      const int64_t offset = placement(*file, name).offset;
      const int64_t size = find(*file, name)->shape()[static_cast<size_t>(dim)];
      places[{offset, offset + size}].push_back(file);
    }
    int64_t end = 0;
    Shape shape = find(*holders.front(), name)->shape();
    for (const auto& [place, ranks] : places) {
      if (place.first != end)
        refuse(*ranks.front(), "tensor " + name,
               "a piece from " + std::to_string(end) + " on along axis " + std::to_string(dim),
               "one from " + std::to_string(place.first) + " to " + std::to_string(place.second));
      end = place.second;
    }
    const Shape whole_shape = expected_shape(name);
    if (end != whole_shape[static_cast<size_t>(dim)])
      refuse(*holders.back(), "tensor " + name,
             "pieces up to " + std::to_string(whole_shape[static_cast<size_t>(dim)]) +
                 " along axis " + std::to_string(dim),
             "up to " + std::to_string(end));
    HostTensor whole(find(*holders.front(), name)->dtype(), whole_shape);
    for (const auto& [place, ranks] : places) {
      const RankFile* file = agreed(name, ranks);
      copy(*find(*file, name), dim, place.first, whole);
      pieces.push_back({file->part.rank, dim, place.first, place.second});
    }
    return whole;
  }

  Shape expected_shape(const std::string& name) const {
    const auto slope = parse_slope(name);
    const auto check = parse_check(name);
    if (check && check->what == "update") return *trained_shape(case_.config, check->of);
    return *tap_shape(slope ? *slope : *parse_tap(name), case_.config, case_.B, case_.S);
  }

  static void copy(const HostTensor& piece, int64_t dim, int64_t offset, HostTensor& whole) {
    const Blocks blocks(piece.shape(), dim);
    const auto item = static_cast<size_t>(item_size(piece.dtype()));
    const int64_t from = piece.shape()[static_cast<size_t>(dim)] * blocks.inner;
    const int64_t to = whole.shape()[static_cast<size_t>(dim)] * blocks.inner;
    for (int64_t block = 0; block < blocks.count; ++block)
      std::memcpy(whole.raw() + static_cast<size_t>(block * to + offset * blocks.inner) * item,
                  piece.raw() + static_cast<size_t>(block * from) * item,
                  static_cast<size_t>(from) * item);
  }

  // --- replicas ---------------------------------------------------------------------------------

  /// What a rank has otherwise than most.
  struct Difference {
    std::string name, text;
  };

  /// The rank whose value counts; the others are compared with it.
  const RankFile* agreed(const std::string& name, const std::vector<const RankFile*>& holders) {
    const RankFile* best = holders.front();
    int64_t most = 0;
    for (const RankFile* file : holders) {
      const int64_t alike = std::count_if(
          holders.begin(), holders.end(),
          [&](const RankFile* other) { return find(*other, name)->identical(*find(*file, name)); });
      if (alike <= most) continue;
      most = alike;
      best = file;
    }
    for (const RankFile* file : holders) {
      if (file == best) continue;
      ++compared_[file->part.rank];
      ++compared_[best->part.rank];
      const std::string text = difference(name, *find(*best, name), *find(*file, name));
      if (!text.empty())
        differences_[file->part.rank].push_back(
            {name, text + " from rank " + std::to_string(best->part.rank) + "'s"});
    }
    return best;
  }

  std::string difference(const std::string& name, const HostTensor& a, const HostTensor& b) const {
    if (a.identical(b)) return "";
    if (a.shape() != b.shape()) return "a shape that differs";
    const auto slope = parse_slope(name);
    const auto parsed = slope ? slope : parse_tap(name);
    const bool decision = parsed && parsed->info.is_decision();
    const int64_t width = a.shape().empty() ? 1 : a.shape().back();
    int64_t rows = 0, judged = 0, first = -1;
    double error = 0, size = 0;
    for (int64_t row = 0; row < a.numel() / std::max<int64_t>(width, 1); ++row) {
      if (parsed && padded(*parsed, a.shape(), row)) continue;
      ++judged;
      bool differs = false;
      std::multiset<double> left, right;
      for (int64_t i = row * width; i < (row + 1) * width; ++i) {
        const double x = a.at(i), y = b.at(i);
        if (decision) {
          left.insert(x);
          right.insert(y);
        } else if (x != y && !(std::isnan(x) && std::isnan(y))) {
          error += (x - y) * (x - y);
          differs = true;
        }
        if (std::isfinite(x)) size += x * x;
      }
      if (decision) differs = left != right;
      if (differs && rows++ == 0) first = row;
    }
    if (rows == 0) return "";
    if (!decision) {
      const double relative = size > 0 ? std::sqrt(error / size) : INFINITY;
      if (by_limit("pair.relative", {.dtype = dtype_for_limit(a.dtype())}, relative).within())
        return "";
    }
    return std::to_string(rows) + " of " + std::to_string(judged) +
           " rows differ (the first: " + place(parsed, a.shape(), first) + ")";
  }

  static DType dtype_for_limit(DType dtype) { return is_floating(dtype) ? dtype : DType::float32; }

  /// A query of padding, in any tap that has query rows.
  bool padded(const TapName& tap, const Shape& shape, int64_t row) const {
    const auto at = token_of(tap, shape, row);
    return at && batch_ && !batch_->valid(at->first, at->second);
  }

  /// Sequence and position of a row of the last axis; nullopt for one of no token, and in a piece
  /// of sequences or tokens.
  std::optional<std::pair<int64_t, int64_t>> token_of(const TapName& tap, const Shape& shape,
                                                      int64_t row) const {
    const TapKind kind = tap.info.kind;
    if (kind == TapKind::gradient || kind == TapKind::scalar || kind == TapKind::series)
      return std::nullopt;
    const bool heads_first = kind == TapKind::attention;
    if (shape.size() < 2 || shape[0] != case_.B || shape[heads_first ? 2 : 1] != case_.S)
      return std::nullopt;
    if (heads_first) return std::pair{row / (shape[1] * case_.S), row % case_.S};
    const int64_t per_token = shape.size() == 4 ? shape[2] : 1;
    return std::pair{row / per_token / case_.S, row / per_token % case_.S};
  }

  std::string place(const std::optional<TapName>& tap, const Shape& shape, int64_t row) const {
    const auto at = tap ? token_of(*tap, shape, row) : std::nullopt;
    if (!at) return "row " + std::to_string(row);
    return "b " + std::to_string(at->first) + ", s " + std::to_string(at->second);
  }

  std::vector<Verdict> verdicts() const {
    std::vector<Verdict> all;
    for (const RankFile& file : files_) {
      const int64_t rank = file.part.rank;
      const auto compared = compared_.find(rank);
      if (compared == compared_.end()) continue;
      Verdict verdict{.subject = subject_,
                      .tap = rule_name("world.rank", std::to_string(rank)),
                      .mode = Mode::exact,
                      .checked = compared->second};
      const auto found = differences_.find(rank);
      const size_t count = found == differences_.end() ? 0 : found->second.size();
      verdict.measures.push_back(
          {"exact", static_cast<double>(count), 0, "what is replicated is the same on every rank"});
      if (count > 0) {
        const Difference& first = found->second.front();
        verdict.note = first.name + " of rank " + std::to_string(rank) + ": " + first.text;
        if (count > 1) verdict.note += "; " + std::to_string(count - 1) + " more tensors";
      }
      settle(verdict);
      all.push_back(std::move(verdict));
    }
    std::stable_sort(all.begin(), all.end(), [](const Verdict& a, const Verdict& b) {
      return a.trust == Trust::fail && b.trust != Trust::fail;
    });
    return all;
  }

  std::vector<RankFile> files_;
  const Case& case_;
  Subject subject_;
  // A batch of the user's own is not known here: then every row counts.
  std::optional<Batch> batch_ =
      case_.batch.empty() ? std::optional<Batch>(make_batch(case_)) : std::nullopt;
  std::map<int64_t, int64_t> compared_;  // by rank
  std::map<int64_t, std::vector<Difference>> differences_;
};

}  // namespace

JoinedWorld join_world(std::vector<RankFile> files, const Case& c, const Subject& subject) {
  return World(std::move(files), c, subject).join();
}

}  // namespace dsv32::harness
