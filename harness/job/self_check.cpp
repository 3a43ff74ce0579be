#include "harness/job/self_check.h"

#include <algorithm>
#include <cmath>

#include "harness/cases/candidate.h"
#include "harness/cases/diagnosis.h"
#include "harness/judge/judge.h"
#include "harness/judge/measure/metrics.h"
#include "src/io/io.h"

namespace dsv32::harness {
namespace {

/// So many bugs are planted, spread over the catalogue.
constexpr size_t kBugs = 12;

bool is_gradient(const std::string& name) { return name.starts_with("grad."); }

/// The traces say the same: decisions are equal, values within rounding. What a sum is added to may
/// change nothing else.
bool equal(const Trace& a, const Trace& b) {
  constexpr double kRounding = 1e-10;  // of float64 runs
  return std::all_of(a.names().begin(), a.names().end(), [&](const std::string& name) {
    const HostTensor *one = a.find(name), *other = b.find(name);
    if (other == nullptr || one->shape() != other->shape()) return false;
    if (!is_floating(one->dtype())) return one->identical(*other);
    return one->identical(*other) || relative(*one, *other) <= kRounding;
  });
}

class SelfChecker {
 public:
  SelfChecker(const std::string& subject, const Case& c, Trace trace, const WeightSource& weights,
              const RunSettings& settings)
      : subject_(subject),
        trace_(std::move(trace)),
        backward_(std::any_of(trace_.names().begin(), trace_.names().end(), is_gradient)),
        run_(c, make_batch(c), weights, backward_, settings) {}

  SelfCheck check(const std::function<void(const PlantedFault&)>& tell) {
    SelfCheck out{.subject = subject_, .case_name = run_.the_case().name};
    const std::vector<Verdict> clean = judged(trace_);
    if (const Verdict* failure = first_failure(clean)) {
      out.unclean = said_of(*failure);
      return out;
    }
    right_ = reference({});
    const auto add = [&](PlantedFault fault) {
      tell(fault);
      out.faults.push_back(std::move(fault));
    };
    for (const KnownBug* bug : spread()) {
      if (out.faults.size() == kBugs) break;
      if (auto fault = plant(*bug)) add(std::move(*fault));
    }
    for (PlantedFault& fault : corruptions()) add(std::move(fault));
    return out;
  }

 private:
  JudgedTrace file(const Trace& trace) const {
    return {.subject = {.party = Party::candidate, .label = subject_},
            .dtype = dtype(),
            .trace = &trace,
            .is_file = true};
  }
  DType dtype() const {
    const auto found = trace_.metadata.find("dtype");
    return found == trace_.metadata.end() ? DType::float32 : parse_dtype(found->second);
  }
  std::vector<Verdict> judged(const Trace& trace) const { return run_.judge_subject(file(trace)); }

  static std::string said_of(const Verdict& failure) {
    std::string text = failure.tap + " (" + std::string(to_string(failure.mode)) + ")";
    for (const Measure& measure : failure.measures)
      if (!measure.within()) return text + ", " + measure.metric;
    return text;
  }

  /// The catalogue in another order: neighbours, which are alike, far from each other.
  static std::vector<const KnownBug*> spread() {
    constexpr size_t kStride = 7;
    std::vector<const KnownBug*> order;
    for (size_t first = 0; first < kStride; ++first)
      for (size_t i = first; i < known_bugs().size(); i += kStride)
        order.push_back(&known_bugs()[i]);
    return order;
  }

  // --- bugs -------------------------------------------------------------------------------------

  /// The float64 run with a bug: under its own decisions, the right one under the trace's.
  Trace reference(const Dialect& dialect) const {
    RunOptions options{.dtype = DType::float64, .dialect = dialect, .backward = backward_};
    if (dialect == Dialect{} && has_decisions(trace_)) {
      options.feeding = Feeding::forced;
      options.feed = &trace_;
    }
    return run_.run(options, "selfcheck");
  }

  /// nullopt for a bug of another kind of run, or one that does nothing to what is there.
  std::optional<PlantedFault> plant(const KnownBug& bug) const {
    if (!(bug.objective == Objective{})) return std::nullopt;
    const bool there =
        std::any_of(trace_.names().begin(), trace_.names().end(),
                    [&](const std::string& name) { return tap_stem(name) == bug.first_tap; });
    if (!there) return std::nullopt;
    Dialect planted;
    bug.plant(planted);
    const Trace wrong = reference(planted);
    if (equal(wrong, right_)) return std::nullopt;
    Trace trace = trace_;
    for (const std::string& name : trace_.names()) {
      const HostTensor *to = wrong.find(name), *from = right_.find(name);
      if (to == nullptr || from == nullptr) continue;
      trace.put(name, is_decision(name) ? *to : moved(*trace_.find(name), *from, *to));
    }
    return judge(bug.name, bug.description, trace, bug.name);
  }

  /// `to` with the rounding error that the value has, in proportion to its tensor's size.
  static HostTensor moved(const HostTensor& value, const HostTensor& from, const HostTensor& to) {
    const double before = norm(from), after = norm(to);
    const double share = before > 0 ? std::min(1.0, after / before) : 0;
    std::vector<double> values = value.to_doubles();
    for (size_t i = 0; i < values.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      const double error = values[i] - from.at(at);
      values[i] = to.at(at) + (std::isfinite(error) ? share * error : 0);
    }
    return HostTensor::from_doubles(value.dtype(), value.shape(), values);
  }

  /// Of what is finite.
  static double norm(const HostTensor& tensor) {
    double squares = 0;
    for (int64_t i = 0; i < tensor.numel(); ++i)
      if (std::isfinite(tensor.at(i))) squares += tensor.at(i) * tensor.at(i);
    return std::sqrt(squares);
  }

  PlantedFault judge(const std::string& name, const std::string& words, const Trace& trace,
                     const std::string& expected) const {
    PlantedFault fault{.name = name, .words = words, .has_name = !expected.empty(), .said = "PASS"};
    const std::vector<Verdict> verdicts = judged(trace);
    const Verdict* failure = first_failure(verdicts);
    if (failure == nullptr) return fault;
    fault.caught = true;
    fault.said = said_of(*failure);
    if (expected.empty()) return fault;
    std::string names;
    for (const Defect& defect : diagnose(run_, file(trace), verdicts).defects) {
      fault.named =
          fault.named || (" " + defect.name + " ").find(" " + expected + " ") != std::string::npos;
      if (!defect.unexplained()) names += (names.empty() ? "" : ", ") + defect.name;
    }
    fault.said += names.empty() ? "; no name" : "; named " + names;
    return fault;
  }

  // --- corruptions ------------------------------------------------------------------------------

  /// A token tap of the last layer that is there, the one that others are compared with.
  std::string some_tap() const {
    std::string found;
    for (const std::string& name : trace_.names()) {
      const auto tap = parse_tap(name);
      if (tap && tap->info.kind == TapKind::token && trace_.find(name)->shape().size() == 3)
        found = name;
      if (tap_stem(name) == "attn.out") return name;
    }
    return found;
  }

  /// A row of a query that counts, in the middle of the batch.
  int64_t some_row() const {
    const Batch& batch = run_.batch();
    for (int64_t row = batch.B * batch.S / 2; row < batch.B * batch.S; ++row)
      if (batch.valid(row / batch.S, row % batch.S)) return row;
    return 0;
  }

  std::vector<PlantedFault> corruptions() const {
    std::vector<PlantedFault> out;
    const std::string tap = some_tap();
    if (tap.empty()) return out;
    const int64_t row = some_row(), width = trace_.find(tap)->shape().back();
    const auto corrupt = [&](const std::string& name, const std::string& words,
                             const std::function<void(std::vector<double>&)>& change) {
      std::vector<double> values = trace_.find(tap)->to_doubles();
      change(values);
      Trace trace = trace_;
      trace.put(tap, HostTensor::from_doubles(values_type(tap), trace_.find(tap)->shape(), values));
      out.push_back(judge(name, words + " in " + tap, trace, ""));
    };
    const auto first = static_cast<size_t>(row * width), n = static_cast<size_t>(width);
    corrupt("one row 1 % larger", "the row of one token is multiplied by 1.01",
            [&](std::vector<double>& v) {
              for (size_t i = 0; i < n; ++i) v[first + i] *= 1.01;
            });
    corrupt("two rows exchanged", "the row of one token stands in that of the next",
            [&](std::vector<double>& v) {
              const auto begin = v.begin() + static_cast<std::ptrdiff_t>(first);
              const auto shift = static_cast<std::ptrdiff_t>(n);
              std::swap_ranges(begin, begin + shift, begin - shift);
            });
    corrupt("a NaN", "one value is not a number",
            [&](std::vector<double>& v) { v[first] = std::nan(""); });
    corrupt("rounded to bfloat16", "every value", [&](std::vector<double>& v) {
      const HostTensor narrow =
          HostTensor::from_doubles(DType::bfloat16, {static_cast<int64_t>(v.size())}, v);
      v = narrow.to_doubles();
    });
    return out;
  }

  DType values_type(const std::string& tap) const { return trace_.find(tap)->dtype(); }

  std::string subject_;
  Trace trace_;
  bool backward_;
  CaseRun run_;
  Trace right_;
};

[[noreturn]] void refuse(const std::string& where, const std::string& what,
                         const std::string& expected, const std::string& got) {
  throw Error(ExitCode::artefact, {.where = where, .what = what, .expected = expected, .got = got});
}

}  // namespace

bool SelfCheck::all_caught() const {
  return unclean.empty() && !faults.empty() &&
         std::all_of(faults.begin(), faults.end(), [](const PlantedFault& f) { return f.caught; });
}

SelfCheck self_check(const std::optional<std::filesystem::path>& trace, const RunSettings& settings,
                     const std::function<void(const PlantedFault&)>& tell) {
  if (!trace) {
    const Case c = io::find_case("tiny-wide");
    const CaseRun run(c, true, settings);
    Trace own = run.run({.dtype = DType::float32, .backward = true}, "reference");
    return SelfChecker("reference float32", c, std::move(own), run.weights(), settings).check(tell);
  }
  Candidate candidate = read_candidates({*trace}).front();
  const std::string where = trace->string();
  if (candidate.mode != "forward" && candidate.mode != "backward")
    refuse(where, "metadata.mode", "forward or backward", candidate.mode);
  if (!candidate.trace.sketches.empty()) refuse(where, "tensors", "whole taps", "sketched ones");
  const Case& c = candidate.the_case;
  if (!c.batch.empty()) refuse(where, "metadata.case", "a case with its own batch", "a batch file");
  const SyntheticWeights weights(c);
  check_weights_identity(candidate, weights);
  const io::CandidateNotes notes = io::candidate_notes(candidate.trace, where);
  for (const std::string& tap : notes.derived_taps) candidate.trace.erase(tap);
  return SelfChecker(trace->filename().string(), c, std::move(candidate.trace), weights, settings)
      .check(tell);
}

}  // namespace dsv32::harness
