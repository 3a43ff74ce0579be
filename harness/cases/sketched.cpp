#include "harness/cases/sketched.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "src/model/sketch.h"

namespace dsv32::harness {
namespace {

using Rows = std::set<int64_t>;

/// The op of this tap reads its own row of its inputs and no other.
bool works_row_by_row(const TapName& tap) {
  static const std::set<std::string_view> stems = {
      "attn_norm",  "q_latent",      "kv_latent",      "q_nope",         "q_rope",
      "k_rope",     "ix.q",          "ix.k",           "ix.weights",     "attn.out",
      "ffn_norm",   "router.logits", "router.experts", "router.weights", "moe.routed",
      "moe.shared", "mlp.out",       "hidden",         "final_norm",     "logits"};
  return stems.contains(tap.info.name);
}

/// Adds what is not there yet.
void merge(Diagnosis more, Diagnosis& diagnosis) {
  if (more.defects.empty()) return;
  const auto known = [&](const Defect& defect) {
    return std::any_of(diagnosis.defects.begin(), diagnosis.defects.end(), [&](const Defect& d) {
      return d.name == defect.name && d.words == defect.words;
    });
  };
  for (Defect& defect : more.defects)
    if (!known(defect)) diagnosis.defects.push_back(std::move(defect));
  sort_by_severity(diagnosis.defects);
  for (std::string& cause : more.causes)
    if (std::find(diagnosis.causes.begin(), diagnosis.causes.end(), cause) ==
        diagnosis.causes.end())
      diagnosis.causes.push_back(std::move(cause));
  if (diagnosis.profile != more.profile)
    diagnosis.profile += (diagnosis.profile.empty() ? "" : "; ") + more.profile;
}

class RowJudge {
 public:
  RowJudge(const CaseRun& run, const JudgedTrace& judged)
      : run_(run), judged_(judged), config_(run.the_case().config), filled_(*judged.trace) {
    for (const auto& [name, sketch] : judged.trace->sketches) {
      const TapName tap = *parse_tap(name);
      if (tap.info.kind != TapKind::token && tap.info.kind != TapKind::key) continue;
      filled_.put(name, tensor_of_rows(sketch));
    }
    filled_.sketches.clear();
  }

  std::vector<Verdict> verdicts() const {
    std::vector<Verdict> verdicts;
    for (const auto& [rows, taps] : groups())
      for (Verdict& verdict : run_.judge_staged(Part(*this, rows, taps).judged))
        verdicts.push_back(std::move(verdict));
    return verdicts;
  }

  /// What the rows of each group say; a defect once.
  Diagnosis diagnose(const std::vector<Verdict>& verdicts) const {
    Diagnosis diagnosis;
    for (const auto& [rows, taps] : groups()) {
      const Part part(*this, rows, taps);
      std::vector<Verdict> staged;
      for (const Verdict& verdict : verdicts)
        if (verdict.mode == Mode::staged && part.trace.has(verdict.tap)) staged.push_back(verdict);
      merge(harness::diagnose(run_, part.judged, staged), diagnosis);
    }
    return diagnosis;
  }

 private:
  /// Rows for which the tap and its inputs are there; nullopt where nothing is sketched, something
  /// is absent, or the op looks at other rows.
  std::optional<Rows> rows_to_judge(const TapName& tap) const {
    if (!works_row_by_row(tap)) return std::nullopt;
    std::vector<std::string> names = tap_inputs(tap, config_);
    names.push_back(tap.full);
    std::optional<Rows> rows;
    for (const std::string& name : names) {
      if (judged_.trace->has(name)) continue;
      const auto sketch = judged_.trace->sketches.find(name);
      if (sketch == judged_.trace->sketches.end()) return std::nullopt;
      const auto& index = sketch->second.row_index;
      Rows both;
      for (const int64_t row : index)
        if (!rows || rows->contains(row)) both.insert(row);
      rows = both;
    }
    return rows && rows->empty() ? std::nullopt : rows;
  }

  std::map<Rows, std::vector<std::string>> groups() const {
    std::map<Rows, std::vector<std::string>> groups;
    for (const std::string& name : forward_taps(config_))
      if (const auto rows = rows_to_judge(*parse_tap(name))) groups[*rows].push_back(name);
    return groups;
  }

  /// Taps that are there in these rows, all others being padding.
  struct Part {
    Part(const RowJudge& all, const Rows& rows, const std::vector<std::string>& taps)
        : batch(all.run_.batch()), judged(all.judged_) {
      trace.metadata = all.judged_.trace->metadata;
      for (const std::string& name : taps)
        if (const HostTensor* value = all.filled_.find(name)) trace.put(name, *value);
      for (size_t i = 0; i < batch.attention_mask.size(); ++i)
        if (!rows.contains(static_cast<int64_t>(i))) batch.attention_mask[i] = 0;
      judged.trace = &trace;
      judged.fed = &all.filled_;
      judged.batch = &batch;
    }
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;

    Trace trace;
    Batch batch;
    JudgedTrace judged;
  };

  const CaseRun& run_;
  const JudgedTrace& judged_;
  const ModelConfig& config_;
  Trace filled_;  // rows that are not there are zero
};

}  // namespace

std::vector<Verdict> judge_staged_rows(const CaseRun& run, const JudgedTrace& judged) {
  if (judged.trace->sketches.empty()) return {};
  return RowJudge(run, judged).verdicts();
}

Diagnosis diagnose_sketched(const CaseRun& run, const JudgedTrace& judged,
                            const std::vector<Verdict>& verdicts) {
  Diagnosis diagnosis;
  if (!judged.trace->sketches.empty()) diagnosis = RowJudge(run, judged).diagnose(verdicts);
  std::vector<Verdict> whole = verdicts;
  std::erase_if(whole, [&](const Verdict& v) { return judged.trace->sketches.contains(v.tap); });
  merge(diagnose(run, judged, whole), diagnosis);
  return diagnosis;
}

}  // namespace dsv32::harness
