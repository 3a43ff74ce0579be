#include "harness/job/compare_traces.h"

#include <algorithm>
#include <cmath>

#include "harness/judge/decisions/decisions.h"
#include "harness/judge/decisions/keys.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/rows.h"
#include "src/io/io.h"
#include "src/model/check_name.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

/// Two traces of the same case, tap by tap.
class Pair {
 public:
  Pair(const Trace& a, const Trace& b, Case c, Batch batch, Subject subject)
      : a_(a), b_(b), case_(std::move(c)), batch_(std::move(batch)), subject_(std::move(subject)) {
    const auto coarser = [](DType x, DType y) { return epsilon(x) > epsilon(y) ? x : y; };
    dtype_ = stored_type(
        coarser(parse_dtype(a.metadata.at("dtype")), parse_dtype(b.metadata.at("dtype"))));
  }

  std::vector<Verdict> verdicts() const {
    std::vector<Verdict> out;
    for (const std::string& name : a_.names())
      if (parse_tap(name)) out.push_back(verdict_of(name));
    for (const std::string& name : b_.names()) {
      if (!a_.has(name)) out.push_back(absent(name, "only the second trace has this tap"));
    }
    return out;
  }

 private:
  Verdict open(const TapName& tap) const {
    return {.case_name = case_.name,
            .subject = subject_,
            .tap = check_of_tap(tap.full),
            .layer = tap.layer,
            .mode = Mode::free};
  }
  Verdict absent(const std::string& name, const char* why) const {
    Verdict verdict = open(*parse_tap(name));
    verdict.trust = Trust::skipped;
    verdict.note = why;
    return verdict;
  }

  Verdict verdict_of(const std::string& name) const {
    const HostTensor* b = b_.find(name);
    if (b == nullptr) return absent(name, "only the first trace has this tap");
    const TapName tap = *parse_tap(name);
    return tap.info.is_decision() ? sets(tap, *a_.find(name), *b) : values(tap, *a_.find(name), *b);
  }

  Verdict values(const TapName& tap, const HostTensor& a, const HostTensor& b) const {
    Verdict verdict = open(tap);
    const std::vector<uint8_t> keys = attended_keys(case_.config, batch_, topk_of(tap));
    const RowLayout layout(tap, a.shape(), &batch_, &keys, RowView::judged);
    double error = 0, norm = 0, largest = -1;
    std::vector<double> x, y;
    for (const Row& row : layout.rows()) {
      layout.gather(a, row, x);
      layout.gather(b, row, y);
      for (size_t i = 0; i < x.size(); ++i) {
        const double gap = x[i] == y[i] ? 0 : std::fabs(x[i] - y[i]);
        error += gap * gap;
        norm += std::isfinite(x[i]) ? x[i] * x[i] : 0;
        if (gap <= largest) continue;
        largest = gap;
        verdict.worst = Worst{layout.unravel(layout.flat_index(row, static_cast<int64_t>(i))),
                              row.number, x[i], y[i]};
      }
      verdict.checked += static_cast<int64_t>(x.size());
    }
    const double relative = error == 0 ? 0 : std::sqrt(error / norm);
    verdict.measures.push_back(by_limit("pair.relative", {.dtype = dtype_}, relative));
    verdict.trust = verdict.measures.back().within() ? Trust::pass : Trust::fail;
    return verdict;
  }

  Verdict sets(const TapName& tap, const HostTensor& a, const HostTensor& b) const {
    Verdict verdict = open(tap);
    const FlipCount flips = count_flips(a, b, batch_);
    verdict.checked = flips.rows;
    verdict.measures.push_back(
        {"differing rows", static_cast<double>(flips.differing_rows), 0, "equal sets"});
    verdict.trust = verdict.measures.back().within() ? Trust::pass : Trust::fail;
    if (flips.differing_rows > 0) {
      verdict.note =
          std::to_string(flips.differing_elements) + " of " + std::to_string(flips.elements) +
          " picks differ; judge each trace with --candidate to learn which flips are legitimate";
    }
    return verdict;
  }

  const HostTensor* topk_of(const TapName& tap) const {
    return tap.layer ? a_.find(layer_tap(*tap.layer, "topk")) : nullptr;
  }

  const Trace& a_;
  const Trace& b_;
  Case case_;
  Batch batch_;
  Subject subject_;
  DType dtype_;
};

}  // namespace

Report compare_traces(const std::filesystem::path& a, const std::filesystem::path& b,
                      const std::optional<std::filesystem::path>& batch_file) {
  const Trace first = io::read_trace(a), second = io::read_trace(b);
  const Case c = io::case_of_trace(first);
  if (io::case_json(c) != io::case_json(io::case_of_trace(second))) {
    throw Error(ExitCode::artefact, {.where = b.string(),
                                     .what = "case",
                                     .expected = first.metadata.at("case"),
                                     .got = second.metadata.at("case"),
                                     .hint = "only traces of one case can be compared"});
  }
  for (const auto& [path, trace] : {std::pair(a, &first), std::pair(b, &second)})
    if (trace->metadata.at("mode") == "generate")
      throw Error(ExitCode::artefact,
                  {.where = path.string(),
                   .what = "metadata.mode",
                   .expected = "a pass over the case's batch",
                   .got = "generate: two decodings part at the first other token",
                   .hint = "--candidate judges each step on its own history"});
  if (batch_file && c.batch.empty()) {
    throw Error(ExitCode::artefact, {.where = a.string(),
                                     .what = "case.batch",
                                     .expected = "the batch " + batch_file->string(),
                                     .got = "none: it was made with the case's own batch",
                                     .hint = "leave --batch out"});
  }
  const Batch batch = io::batch_of_case(c, batch_file, a.string());
  Report report{.suites = {"compare"}, .cases = {c.name}};
  const Subject subject{.party = Party::candidate,
                        .label = a.filename().string() + " and " + b.filename().string(),
                        .against = Against::trace};
  report.verdicts = Pair(first, second, c, batch, subject).verdicts();
  Finding finding{.case_name = c.name, .subject = subject};
  const auto failed = std::find_if(report.verdicts.begin(), report.verdicts.end(),
                                   [](const Verdict& v) { return v.trust == Trust::fail; });
  if (failed != report.verdicts.end()) {
    finding.first_tap = failed->tap;
    finding.headline = "first difference " + failed->tap;
  }
  report.findings.push_back(finding);
  return report;
}

}  // namespace dsv32::harness
