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

  std::vector<Verdict> run() {
    std::map<Rows, std::vector<std::string>> groups;
    for (const std::string& name : forward_taps(config_))
      if (const auto rows = rows_to_judge(*parse_tap(name))) groups[*rows].push_back(name);
    std::vector<Verdict> verdicts;
    for (const auto& [rows, taps] : groups) judge_group(rows, taps, verdicts);
    return verdicts;
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

  void judge_group(const Rows& rows, const std::vector<std::string>& taps,
                   std::vector<Verdict>& verdicts) const {
    Trace part;
    part.metadata = judged_.trace->metadata;
    for (const std::string& name : taps)
      if (const HostTensor* value = filled_.find(name)) part.put(name, *value);
    Batch batch = run_.batch();
    for (size_t i = 0; i < batch.attention_mask.size(); ++i)
      if (!rows.contains(static_cast<int64_t>(i))) batch.attention_mask[i] = 0;
    JudgedTrace judged = judged_;
    judged.trace = &part;
    judged.fed = &filled_;
    judged.batch = &batch;
    for (Verdict& verdict : run_.judge_staged(judged)) verdicts.push_back(std::move(verdict));
  }

  const CaseRun& run_;
  const JudgedTrace& judged_;
  const ModelConfig& config_;
  Trace filled_;  // rows that are not there are zero
};

}  // namespace

std::vector<Verdict> judge_staged_rows(const CaseRun& run, const JudgedTrace& judged) {
  if (judged.trace->sketches.empty()) return {};
  return RowJudge(run, judged).run();
}

}  // namespace dsv32::harness
