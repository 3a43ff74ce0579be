#include "harness/cases/diagnosis.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "harness/cases/backward_origin.h"
#include "harness/cases/gradient_patterns.h"
#include "harness/cases/search.h"
#include "harness/cases/severity.h"
#include "harness/judge/decisions/keys.h"
#include "harness/judge/judge.h"
#include "harness/judge/structure/match.h"

namespace dsv32::harness {
namespace {

using Names = std::vector<std::string>;

/// Where a tap is computed: its layer, or outside of the layers.
constexpr int64_t kOutside = -1;
int64_t place_of(const std::string& tap) { return parse_tap(tap)->layer.value_or(kOutside); }

bool contains(const Names& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_gradient(const std::string& tap) { return tap.starts_with("grad."); }

const Trace& fed_by(const JudgedTrace& judged) {
  return judged.fed != nullptr ? *judged.fed : *judged.trace;
}

Names at_place(const Names& taps, int64_t place) {
  Names out;
  for (const std::string& tap : taps)
    if (place_of(tap) == place) out.push_back(tap);
  return out;
}

/// A choice made at one place, or several that agreed.
struct Found {
  Choice choice;
  std::set<int64_t> places;
};

std::vector<const Toggle*> shared(const std::vector<const Toggle*>& a,
                                  const std::vector<const Toggle*>& b) {
  std::vector<const Toggle*> out;
  for (const Toggle* toggle : a)
    if (std::find(b.begin(), b.end(), toggle) != b.end()) out.push_back(toggle);
  return out;
}

std::string joined(const Names& parts, const std::string& between) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : between) + part;
  return text;
}

/// The names of toggles that give the same numbers here.
std::string name_of(const Choice& choice) {
  constexpr size_t kShown = 3;
  Names names;
  for (const Toggle* toggle : choice.alternatives)
    if (names.size() < kShown) names.push_back(toggle->name);
  std::string text = joined(names, " or ");
  if (choice.alternatives.size() > kShown)
    text += " or " + std::to_string(choice.alternatives.size() - kShown) + " more";
  return text;
}

std::string words_of(const Choice& choice) {
  constexpr size_t kShown = 3;
  Names words;
  for (const Toggle* toggle : choice.alternatives)
    if (words.size() < kShown) words.push_back(toggle->words);
  return joined(words, ", or ");
}

class Doctor {
 public:
  Doctor(const CaseRun& run, const JudgedTrace& judged, const std::vector<Verdict>& verdicts)
      : run_(run),
        judged_(judged),
        verdicts_(verdicts),
        toggles_(toggles_for(run.the_case().config, run.objective(), judged.dtype)),
        severity_(run, judged) {
    for (const Verdict& verdict : verdicts)
      if (parse_tap(verdict.tap) && judged.trace->has(verdict.tap)) sort_in(verdict);
  }

  Diagnosis diagnose() {
    if (!staged_.failing.empty()) explain_staged();
    if (unexplained_.empty() && !gradients_.failing.empty() && gradients_follow_rules())
      explain_gradients();
    if (gradients_.failing.empty() || !gradient_patterns_.empty() || !unexplained_.empty())
      find_backward_origins();
    Diagnosis diagnosis;
    for (const Found& found : found_) diagnosis.defects.push_back(defect_of(found));
    for (Defect& defect : unexplained_defects()) diagnosis.defects.push_back(std::move(defect));
    sort_by_severity(diagnosis.defects);
    if (diagnosis.defects.empty()) return diagnosis;
    diagnosis.profile = profile(diagnosis.defects);
    diagnosis.causes = causes(diagnosis.defects);
    return diagnosis;
  }

 private:
  void sort_in(const Verdict& verdict) {
    const bool gradient = is_gradient(verdict.tap);
    if (gradient == (verdict.mode == Mode::staged)) return;  // backward_origins looks at those
    Findable& findable = gradient ? gradients_ : staged_;
    if (verdict.trust == Trust::fail) findable.failing.push_back(verdict.tap);
    if (verdict.trust == Trust::pass) findable.passing.push_back(verdict.tap);
  }

  // --- which toggles come into question ---------------------------------------------------------

  /// The stems of a tap and of everything that it follows from without a tap of the subject
  /// between.
  void add_sources(const std::string& tap, std::set<std::string>& stems) const {
    if (!stems.insert(tap_stem(tap)).second) return;
    for (const std::string& input : tap_inputs(*parse_tap(tap), run_.the_case().config))
      if (!fed_by(judged_).has(input)) add_sources(input, stems);
  }

  std::vector<const Toggle*> toggles_at(const Names& failing) const {
    std::set<std::string> stems;
    for (const std::string& tap : failing) add_sources(tap, stems);
    std::vector<const Toggle*> out;
    for (const Toggle& toggle : toggles_) {
      const bool fits = std::any_of(stems.begin(), stems.end(),
                                    [&](const std::string& stem) { return touches(toggle, stem); });
      if (fits && !toggle.gradients_only()) out.push_back(&toggle);
    }
    return out;
  }

  // --- the forward taps, place by place ---------------------------------------------------------

  void explain_staged() {
    Search search(run_, judged_, staged_);
    std::set<int64_t> places;
    for (const std::string& tap : staged_.failing) places.insert(place_of(tap));
    for (const int64_t place : places) explain_place(search, place);
    for (Found& found : found_) limit_to_layers(search, found);
  }

  void explain_place(Search& search, int64_t place) {
    const Names failing = at_place(staged_.failing, place);
    const Names passing = at_place(staged_.passing, place);
    Dialect now = judged_.dialect;
    const Names differing = search.left(failing, now);
    const std::vector<Choice> choices =
        search.explain(differing, passing, toggles_at(differing), now);
    for (const Choice& choice : choices) merge(choice, place);
    for (const std::string& tap : failing) {
      const bool explained = std::any_of(choices.begin(), choices.end(),
                                         [&](const Choice& c) { return contains(c.taps, tap); });
      if (!explained && !follows(tap)) unexplained_.push_back(tap);
    }
  }

  void merge(const Choice& choice, int64_t place) {
    for (Found& found : found_) {
      const auto both = shared(found.choice.alternatives, choice.alternatives);
      if (both.empty() || found.places.contains(place)) continue;
      found.choice.alternatives = both;
      found.choice.taps.insert(found.choice.taps.end(), choice.taps.begin(), choice.taps.end());
      found.places.insert(place);
      return;
    }
    found_.push_back({choice, {place}});
  }

  /// A set that is the right choice from scores which are themselves explained: it breaks a rule,
  /// but is no defect of its own.
  bool follows(const std::string& tap) {
    const TapName name = *parse_tap(tap);
    if (name.info.name == "attn.probs") return follows_from_selection(tap, *name.layer);
    if (name.info.kind != TapKind::topk) return false;
    const std::string scores = layer_tap(*name.layer, "ix.scores");
    for (Found& found : found_) {
      if (!contains(found.choice.taps, scores)) continue;
      found.choice.taps.push_back(tap);
      return true;
    }
    return false;
  }

  /// A row that selects no key which it may see: what its attention gives is no rule's business.
  bool follows_from_selection(const std::string& tap, int64_t layer) {
    const std::string selection = layer_tap(layer, "topk");
    if (!contains(staged_.failing, selection)) return false;
    if (!has_blind_row(*judged_.trace->find(selection))) return false;
    blind_ = true;
    for (Found& found : found_) {
      if (!contains(found.choice.taps, selection)) continue;
      found.choice.taps.push_back(tap);
      return true;
    }
    return contains(unexplained_, selection);
  }

  bool has_blind_row(const HostTensor& topk) const {
    const Batch& batch = run_.batch();
    for (int64_t row = 0; row < batch.B * batch.S; ++row) {
      const int64_t b = row / batch.S, s = row % batch.S;
      if (!batch.valid(b, s)) continue;
      const std::set<int64_t> picks = picks_of_row(topk, row);
      if (std::none_of(picks.begin(), picks.end(),
                       [&](int64_t key) { return visible(batch, b, s, key); }))
        return true;
    }
    return false;
  }

  /// Other layers whose taps the same defect would have moved do not have it.
  void limit_to_layers(Search& search, Found& found) {
    bool limited = false;
    for (int64_t layer = 0; layer < run_.the_case().config.num_hidden_layers; ++layer) {
      if (found.places.contains(layer) || found.places.contains(kOutside)) continue;
      limited = limited ||
                search.moves(*found.choice.alternatives.front(), at_place(staged_.passing, layer));
    }
    if (!limited) found.places.clear();
  }

  /// Empty: in all.
  std::vector<int64_t> layers_of(const Found& found) const {
    return {found.places.begin(), found.places.end()};
  }

  // --- gradients --------------------------------------------------------------------------------

  /// The reference's gradients under what was found are those of the subject: not where rows see
  /// nothing that they may see, nor where products were rounded (backward rounds elsewhere).
  bool gradients_follow_rules() const {
    const bool coarse = std::any_of(found_.begin(), found_.end(), [](const Found& found) {
      return !(found.choice.alternatives.front()->planted({}).linear == LinearVariant{});
    });
    return !blind_ && !coarse;
  }

  void explain_gradients() {
    Dialect now = judged_.dialect;
    std::map<int64_t, Dialect> layers;
    plant_all(now, layers);
    gradients_.mode = Mode::forced;
    Search search(run_, judged_, gradients_, layers);
    const Names differing = search.left(gradients_.failing, now);
    std::vector<const Toggle*> toggles;
    for (const Toggle& toggle : toggles_)
      if (toggle.gradients_only()) toggles.push_back(&toggle);
    const std::vector<Choice> choices = search.explain(differing, gradients_.passing, toggles, now);
    for (const Choice& choice : choices) found_.push_back({choice, {}});
    const Names left = search.left(differing, now);
    Names right = gradients_.passing;  // under all that was found
    for (const std::string& tap : gradients_.failing)
      if (!contains(left, tap)) right.push_back(tap);
    gradient_patterns_ = gradient_patterns(left, right, verdicts_);
  }

  /// The ops whose own backward pass is wrong, in place of the patterns that they leave upstream.
  void find_backward_origins() {
    origins_ = backward_origins(run_, judged_, verdicts_);
    if (!origins_.empty()) gradient_patterns_.clear();
  }

  /// Everything found so far, in the layers that it was found in.
  void plant_all(Dialect& all, std::map<int64_t, Dialect>& layers) const {
    for (const Found& found : found_) {
      const Toggle& toggle = *found.choice.alternatives.front();
      if (found.places.empty()) toggle.plant(all);
    }
    for (const Found& found : found_)
      for (const int64_t layer : found.places) {
        const auto slot = layers.emplace(layer, all).first;
        found.choice.alternatives.front()->plant(slot->second);
      }
  }

  // --- what was found ---------------------------------------------------------------------------

  Defect defect_of(const Found& found) {
    Defect defect{.name = name_of(found.choice),
                  .words = words_of(found.choice),
                  .taps = found.choice.taps,
                  .layers = layers_of(found)};
    defect.evidence = evidence(found.choice.taps);
    const Dialect planted = found.choice.alternatives.front()->planted(judged_.dialect);
    defect.severity = severity_.of_dialect(planted, defect.layers);
    return defect;
  }

  /// What the selection looks like.
  std::string evidence(const Names& taps) const {
    for (const std::string& tap : taps) {
      if (parse_tap(tap)->info.kind != TapKind::topk) continue;
      const Verdict* verdict = failure(tap);
      if (verdict != nullptr && !verdict->structure.empty()) return verdict->structure;
    }
    return "";
  }

  const Verdict* failure(const std::string& tap) const {
    for (const Verdict& verdict : verdicts_)
      if (verdict.tap == tap && verdict.trust == Trust::fail) return &verdict;
    return nullptr;
  }

  /// What the judge saw in it, and which other tap it is.
  std::string look_of(const std::string& tap) {
    const Verdict* verdict = failure(tap);
    const std::string seen = verdict->structure.empty() ? verdict->note : verdict->structure;
    if (is_gradient(tap)) return seen;
    if (!oracle_) {
      oracle_ = run_.run({.dtype = DType::float64,
                          .dialect = judged_.dialect,
                          .feeding = Feeding::staged,
                          .feed = &fed_by(judged_)},
                         "staged oracle");
    }
    Comparison c;
    c.config = &run_.the_case().config;
    c.batch = &run_.batch_of(judged_);
    c.tap = *parse_tap(tap);
    c.judged = judged_.trace->find(tap);
    c.yardstick.oracle = oracle_->find(tap);
    const std::string match = describe_match(c, *oracle_, *judged_.trace);
    return match.empty() || seen.empty() ? match + seen : match + "; " + seen;
  }

  /// One for each op, over its layers.
  std::vector<Defect> unexplained_defects() {
    std::vector<Defect> defects;
    for (const std::string& tap : unexplained_) {
      const std::string stem = tap_stem(tap);
      const auto same = std::find_if(defects.begin(), defects.end(), [&](const Defect& defect) {
        return tap_stem(defect.taps.front()) == stem;
      });
      if (same != defects.end()) {
        same->taps.push_back(tap);
        continue;
      }
      const std::string look = look_of(tap);
      defects.push_back(
          {.name = "",
           .words = stem + " is off for no known reason" + (look.empty() ? "" : " (" + look + ")"),
           .taps = {tap}});
    }
    for (const BackwardOrigin& origin : origins_)
      defects.push_back(
          {.name = "", .words = origin.words, .taps = origin.taps, .layers = origin.layers});
    for (const GradientPattern& pattern : gradient_patterns_)
      defects.push_back({.name = "", .words = pattern.words, .taps = pattern.taps});
    for (Defect& defect : defects)
      if (can_stand_in(defect.taps)) defect.severity = severity_.of_taps(defect.taps);
    return defects;
  }

  bool can_stand_in(const Names& taps) const {
    if (judged_.batch != nullptr) return false;  // only some of their rows are there
    const Batch& batch = run_.batch();
    return std::all_of(taps.begin(), taps.end(), [&](const std::string& tap) {
      if (is_gradient(tap) || parse_slope(tap)) return false;
      const auto shape = tap_shape(*parse_tap(tap), run_.the_case().config, batch.B, batch.S);
      return shape && judged_.trace->find(tap)->shape() == *shape;
    });
  }

  std::string profile(const std::vector<Defect>& defects) const {
    Names names, open;
    for (const Defect& defect : defects) {
      if (defect.unexplained()) {
        open.push_back(tap_stem(defect.taps.front()));
        continue;
      }
      std::string layers;
      for (const int64_t layer : defect.layers)
        layers += (layers.empty() ? " in layer " : ", ") + std::to_string(layer);
      names.push_back(defect.name + layers);
    }
    std::string text = judged_.dialect.name + " + {" + joined(names, ", ") + "}";
    if (names.empty()) text = judged_.dialect.name;
    const std::string preset = matching_dialect();
    if (!preset.empty()) text += " = dialect " + preset;
    return open.empty() ? text : text + ", not explained: " + joined(open, ", ");
  }

  /// The preset that is what was found, no more and no less.
  std::string matching_dialect() const {
    if (!unexplained_.empty() || !gradient_patterns_.empty() || !origins_.empty() || found_.empty())
      return "";
    Dialect all = judged_.dialect;
    for (const Found& found : found_) {
      if (!found.places.empty()) return "";
      found.choice.alternatives.front()->plant(all);
    }
    for (Dialect preset : dialect_presets()) {
      const std::string name = preset.name;
      preset = in_dtype(preset, judged_.dtype);
      preset.router.norm_eps = all.router.norm_eps;  // below every rounding
      if (same_function(run_.the_case().config, all, preset)) return name;
    }
    return "";
  }

  Names causes(const std::vector<Defect>& defects) const {
    Names lines;
    const std::string preset = matching_dialect();
    if (!preset.empty())
      lines.push_back("matches dialect " + preset + ": " + dialect_consequence(preset) +
                      "; declare it with --dialect " + preset);
    for (const Defect& defect : defects)
      lines.push_back(
          (defect.unexplained() ? "not explained: " : "known bug " + defect.name + ": ") +
          headline_of(defect));
    return lines;
  }

  const CaseRun& run_;
  const JudgedTrace& judged_;
  const std::vector<Verdict>& verdicts_;
  const std::vector<Toggle> toggles_;
  SeverityProbe severity_;
  Findable staged_, gradients_;
  std::optional<Trace> oracle_;  // staged, every tap; made for taps that nothing explains
  std::vector<Found> found_;
  Names unexplained_;
  bool blind_ = false;  // some row selects no key that it may see, and it shows
  std::vector<GradientPattern> gradient_patterns_;  // that nothing explains
  std::vector<BackwardOrigin> origins_;             // of gradients that nothing explains
};

}  // namespace

Diagnosis diagnose(const CaseRun& run, const JudgedTrace& judged,
                   const std::vector<Verdict>& verdicts) {
  if (first_failure(verdicts) == nullptr) return {};
  return Doctor(run, judged, verdicts).diagnose();
}

}  // namespace dsv32::harness
