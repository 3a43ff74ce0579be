#include "harness/cases/search.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

/// Pairs are tried among so many toggles at most: those that come nearest.
constexpr size_t kMostMovers = 12;
/// A hypothesis that leaves more of the distance than this is not measured against rounding.
constexpr double kNear = 0.5;
/// The same of a hypothesis that quantises: codes of values that were rounded elsewhere turn.
constexpr double kNearInCodes = 0.9;
/// A smaller change of a distance is no move.
constexpr double kMove = 1e-3;

using Names = std::vector<std::string>;
using Taps = std::set<std::string>;

bool contains(const Names& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

const Trace* fed_by(const JudgedTrace& judged) {
  return judged.fed != nullptr ? judged.fed : judged.trace;
}

/// The rounding of a run around `from`, carried over to values `to` of the same shape.
HostTensor carried(const HostTensor& run, const HostTensor& from, const HostTensor& to) {
  std::vector<double> out = to.to_doubles();
  for (int64_t i = 0; i < to.numel(); ++i) {
    const double rounding = run.at(i) - from.at(i);
    if (std::isfinite(rounding)) out[i] += rounding;
  }
  return HostTensor::from_doubles(DType::float64, to.shape(), out);
}

}  // namespace

Search::Search(const CaseRun& run, const JudgedTrace& judged, Findable findable,
               std::map<int64_t, Dialect> layer_dialects)
    : run_(run),
      judged_(judged),
      agreement_(run, judged),
      findable_(std::move(findable)),
      layer_dialects_(std::move(layer_dialects)) {
  taps_.insert(findable_.failing.begin(), findable_.failing.end());
  std::set<std::optional<int64_t>> places;
  for (const std::string& tap : findable_.failing) places.insert(parse_tap(tap)->layer);
  for (const std::string& tap : findable_.passing)
    if (findable_.mode == Mode::forced || places.contains(parse_tap(tap)->layer)) taps_.insert(tap);
}

RunOptions Search::options(const Dialect& dialect, DType dtype, const Taps& taps) const {
  RunOptions options{.dtype = dtype,
                     .dialect = dialect,
                     .layer_dialects = layer_dialects_,
                     .backward = findable_.mode == Mode::forced,
                     .wanted = [&taps](const std::string& name) { return taps.contains(name); }};
  const bool staged = findable_.mode == Mode::staged;
  if (staged) {
    options.feeding = Feeding::staged;
  } else if (has_decisions(*judged_.trace)) {
    options.feeding = Feeding::forced;
  }
  options.feed = staged ? fed_by(judged_) : judged_.trace;
  return options;
}

Trace Search::run(const Dialect& dialect, DType dtype, const Taps& taps) const {
  return run_.run(options(dialect, dtype, taps), "hypothesis");
}

Trace Search::twin(const Dialect& dialect, const Taps& taps) const {
  return run_.twin(options(dialect, judged_.dtype, taps), "hypothesis").value_or(Trace());
}

/// The stems of a tap and of everything that it follows from without a fed tap between.
void Search::add_sources(const std::string& tap, Taps& stems) const {
  if (!stems.insert(tap_stem(tap)).second) return;
  for (const std::string& input : tap_inputs(*parse_tap(tap), run_.the_case().config))
    if (!fed_by(judged_)->has(input)) add_sources(input, stems);
}

Taps Search::reached(const Dialect& dialect, const Taps& taps) const {
  if (findable_.mode != Mode::staged) return taps;
  const Names changed = changed_ops(judged_.dialect, dialect);
  Taps out;
  for (const std::string& tap : taps) {
    Taps stems;
    add_sources(tap, stems);
    if (std::any_of(changed.begin(), changed.end(),
                    [&](const std::string& stem) { return stems.contains(stem); }))
      out.insert(tap);
  }
  return out;
}

/// Values that a toggle moved: what passes must be within the rounding that it has without the
/// toggle.
bool Search::agrees_as_before(const Rounding& before, const std::string& tap,
                              const HostTensor& moved, const Dialect& dialect) const {
  if (is_decision(tap)) return agreement_.agrees(tap, {.oracle = &moved}, findable_.mode, dialect);
  const HostTensor* right = before.oracle.find(tap);
  const auto around = [&](const Trace& trace) {
    const HostTensor* values = trace.find(tap);
    return values == nullptr ? HostTensor() : carried(*values, *right, moved);
  };
  const HostTensor reference = around(before.reference), twin = around(before.twin);
  return agreement_.agrees(tap,
                           {.oracle = &moved,
                            .reference = reference.defined() ? &reference : nullptr,
                            .twin = twin.defined() ? &twin : nullptr},
                           findable_.mode, judged_.dialect);
}

Search::Rounding Search::rounding(const Dialect& dialect, const Taps& taps) const {
  return {.oracle = run(dialect, DType::float64, taps),
          .reference = run(dialect, judged_.dtype, taps),
          .twin = twin(dialect, taps)};
}

/// Under the subject's own dialect: what passes agrees.
void Search::measure_first(Look& look) {
  const Dialect& dialect = judged_.dialect;
  first_ = rounding(dialect, taps_);
  const auto& [oracle, reference, twin] = first_;
  for (const std::string& tap : taps_)
    look[tap] = {.gap = agreement_.gap(tap, oracle.find(tap), dialect), .agrees = true};
  for (const std::string& tap : findable_.failing)
    look[tap].agrees = agreement_.agrees(
        tap, {.oracle = oracle.find(tap), .reference = reference.find(tap), .twin = twin.find(tap)},
        findable_.mode, dialect);
}

/// `look` comes with what is known of the subject's own dialect. A passing tap that moved is
/// measured with the rounding that it has under that one; a failing tap that came near with its
/// own.
void Search::measure(const Dialect& dialect, Look& look) const {
  const Taps reached_taps = reached(dialect, taps_);
  const Trace oracle = run(dialect, DType::float64, reached_taps);
  const double nearest = dialect.fp8 == judged_.dialect.fp8 ? kNear : kNearInCodes;
  Taps near;
  for (const std::string& tap : reached_taps) {
    View& view = look[tap];
    const double before = view.gap;
    view.gap = agreement_.gap(tap, oracle.find(tap), dialect);
    const bool fails = contains(findable_.failing, tap);
    if (!fails && view.gap != before)
      view.agrees = agrees_as_before(first_, tap, *oracle.find(tap), dialect);
    if (!fails) continue;
    view.agrees = false;
    if (view.gap <= nearest * before) near.insert(tap);
  }
  if (near.empty()) return;
  const Trace reference = run(dialect, judged_.dtype, near), other = twin(dialect, near);
  for (const std::string& tap : near)
    look[tap].agrees = agreement_.agrees(
        tap,
        {.oracle = oracle.find(tap), .reference = reference.find(tap), .twin = other.find(tap)},
        findable_.mode, dialect);
}

const Look& Search::look(const Dialect& dialect) {
  for (const auto& [known, seen] : looks_)
    if (known == dialect) return *seen;
  auto look = std::make_unique<Look>();
  if (looks_.empty()) {
    measure_first(*look);
    looks_.emplace_back(judged_.dialect, std::move(look));
    return this->look(dialect);
  }
  *look = *looks_.front().second;
  try {
    measure(dialect, *look);
  } catch (const Error& error) {
    if (error.code() != ExitCode::usage && error.code() != ExitCode::artefact) throw;
    for (auto& [tap, view] : *look)  // cannot be computed on these shapes
      view = {.gap = INFINITY, .agrees = false};
  }
  return *looks_.emplace_back(dialect, std::move(look)).second;
}

Names Search::left(const Names& taps, const Dialect& now) {
  Names out;
  const Look& seen = look(now);
  for (const std::string& tap : taps)
    if (!seen.at(tap).agrees) out.push_back(tap);
  return out;
}

/// The taps that `dialect` explains; none when it moves one that must not move.
Names Search::explained(const Step& step, const Dialect& dialect) {
  if (dialect == step.now) return {};
  const Look& seen = look(dialect);
  Names taps;
  for (const std::string& tap : step.failing)
    if (seen.at(tap).agrees) taps.push_back(tap);
  const bool contradicted =
      std::any_of(step.passing.begin(), step.passing.end(),
                  [&](const std::string& tap) { return !seen.at(tap).agrees; });
  return contradicted ? Names{} : taps;
}

std::vector<Choice> Search::one(const Step& step) {
  Choice best;
  for (const Toggle* toggle : step.toggles) {
    const Names taps = explained(step, toggle->planted(step.now));
    if (taps.empty()) continue;
    if (taps.size() > best.taps.size()) best = {{}, taps};
    if (taps == best.taps) best.alternatives.push_back(toggle);
  }
  return best.taps.empty() ? std::vector<Choice>{} : std::vector<Choice>{best};
}

/// Toggles that move a failing tap and none that passes, the nearest first.
std::vector<const Toggle*> Search::movers(const Step& step) {
  std::vector<std::pair<double, const Toggle*>> found;
  const Look before = look(step.now);
  for (const Toggle* toggle : step.toggles) {
    const Dialect dialect = toggle->planted(step.now);
    if (dialect == step.now) continue;
    const Look& seen = look(dialect);
    if (std::any_of(step.passing.begin(), step.passing.end(),
                    [&](const std::string& tap) { return !seen.at(tap).agrees; }))
      continue;
    double nearest = INFINITY;
    for (const std::string& tap : step.failing) {
      const double a = before.at(tap).gap, b = seen.at(tap).gap;
      if (std::fabs(a - b) > kMove * a && std::isfinite(b)) nearest = std::min(nearest, b / a);
    }
    if (std::isfinite(nearest)) found.emplace_back(nearest, toggle);
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<const Toggle*> toggles;
  for (size_t i = 0; i < std::min(found.size(), kMostMovers); ++i)
    toggles.push_back(found[i].second);
  return toggles;
}

std::vector<Choice> Search::two(const Step& step) {
  const std::vector<const Toggle*> all = movers(step);
  Choice first, second;
  for (size_t i = 0; i < all.size(); ++i) {
    for (size_t j = i + 1; j < all.size(); ++j) {
      const Names taps = explained(step, all[j]->planted(all[i]->planted(step.now)));
      if (taps.empty()) continue;
      if (taps.size() > first.taps.size()) {
        first = {{all[i]}, taps};
        second = {{all[j]}, taps};
      } else if (taps == first.taps && all[i] == first.alternatives[0]) {
        second.alternatives.push_back(all[j]);
      } else if (taps == first.taps && all[j] == second.alternatives[0]) {
        first.alternatives.push_back(all[i]);
      }
    }
  }
  return first.taps.empty() ? std::vector<Choice>{} : std::vector<Choice>{first, second};
}

std::vector<Choice> Search::explain(const Names& failing, const Names& passing,
                                    const std::vector<const Toggle*>& toggles, Dialect& now) {
  std::vector<Choice> choices;
  Step step{.failing = left(failing, now), .passing = passing, .toggles = toggles, .now = now};
  while (!step.failing.empty()) {
    std::vector<Choice> found = one(step);
    if (found.empty()) found = two(step);
    if (found.empty()) break;
    for (const Choice& choice : found) choice.alternatives.front()->plant(step.now);
    for (const std::string& tap : found.front().taps) step.passing.push_back(tap);
    std::erase_if(step.failing,
                  [&](const std::string& tap) { return contains(found.front().taps, tap); });
    choices.insert(choices.end(), found.begin(), found.end());
  }
  now = step.now;
  return choices;
}

bool Search::moves(const Toggle& toggle, const Names& names) {
  const Dialect& before = judged_.dialect;
  const Dialect after = toggle.planted(before);
  const Taps taps = reached(after, Taps(names.begin(), names.end()));
  if (taps.empty()) return false;
  const Rounding own = rounding(before, taps);
  const Trace other = run(after, DType::float64, taps);
  return std::any_of(taps.begin(), taps.end(), [&](const std::string& tap) {
    const HostTensor* moved = other.find(tap);
    if (agreement_.gap(tap, moved, after) == agreement_.gap(tap, own.oracle.find(tap), before))
      return false;
    return !agrees_as_before(own, tap, *moved, after);
  });
}

}  // namespace dsv32::harness
