#include "harness/judge/decisions/free.h"

#include "harness/judge/compare.h"
#include "harness/judge/decisions/keys.h"
#include "harness/judge/limits.h"

namespace dsv32::harness {
namespace {

bool is_row_by_row(const TapName& tap) {
  return tap.info.kind != TapKind::scalar && tap.info.kind != TapKind::gradient;
}

std::string of_rows(int64_t part, int64_t whole) {
  return std::to_string(part) + " of " + std::to_string(whole) + " rows";
}

// The rows that no turn of a decision can have moved, judged as if all decisions were known.
Verdict judge_unexposed(const Comparison& c, const Exposure& exposure) {
  Batch batch = exposure.without_exposed(c.tap);
  for (size_t i = 0; i < batch.attention_mask.size(); ++i)  // rows that are not there
    batch.attention_mask[i] &= c.batch->attention_mask[i];
  const std::vector<uint8_t> keys = visible_keys(*c.batch);
  Comparison rest = c;
  rest.batch = &batch;
  if (rest.support == nullptr) rest.support = &keys;
  return compare_values(rest);
}

std::string why_undecided(const Comparison& c, const Exposure& exposure) {
  const Exposure::Share share = exposure.share(c.tap);
  return "not decided: beyond rounding, but " +
         (is_row_by_row(c.tap)
              ? of_rows(share.exposed, share.rows) + " follow a near-tie"
              : std::string("near-ties before it may have been decided otherwise")) +
         "; the decisions are not in the file: add topk and router.experts";
}

Verdict undecided(const Comparison& c, const Exposure& exposure, Verdict verdict) {
  verdict.measures = {by_limit("free.relative", relative_error(c))};
  verdict.trust = Trust::undecided;
  verdict.structure.clear();
  verdict.note = why_undecided(c, exposure);
  settle(verdict);
  return verdict;
}

}  // namespace

Verdict judge_free_decision(const Comparison& c, const Exposure& exposure, Verdict verdict) {
  const bool invalid = breaks_exact_rule(verdict);  // no selection can make such a set
  if (verdict.trust != Trust::fail || invalid || !exposure.touches(c.tap)) return verdict;
  verdict.trust = Trust::undecided;
  verdict.note = why_undecided(c, exposure);
  return verdict;
}

Verdict judge_free(const Comparison& c, const Exposure& exposure) {
  Verdict verdict = compare_values(c);
  if (verdict.trust != Trust::fail) return verdict;
  if (!exposure.touches(c.tap)) {
    verdict.note = "no decision before it is near a tie: rounding does not explain this";
    return verdict;
  }
  if (is_row_by_row(c.tap)) {
    Verdict unexposed = judge_unexposed(c, exposure);
    if (unexposed.trust == Trust::fail) {
      const Exposure::Share share = exposure.share(c.tap);
      unexposed.note = "judged on the " + of_rows(share.rows - share.exposed, share.rows) +
                       " that no near-tie can have moved";
      return unexposed;
    }
  }
  return undecided(c, exposure, std::move(verdict));
}

}  // namespace dsv32::harness
