#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/model/case.h"
#include "src/model/tensor.h"

namespace dsv32 {

/// The label of a token that is not counted, as in torch's cross entropy.
inline constexpr int64_t kIgnoredLabel = -100;
/// Training cycles through so many batches of a case. docs/formats.md 2.
inline constexpr int64_t kBatches = 4;

/// One batch of tokens. All [B,S] int64, row-major. docs/formats.md 2.
struct Batch {
  int64_t B = 0;
  int64_t S = 0;
  std::vector<int64_t> input_ids;
  std::vector<int64_t> attention_mask;  // 0 or 1; all 1 when none was given
  std::vector<int64_t> position_ids;    // max(cumsum(mask) - 1, 0), plus the case's offset
  std::vector<int64_t> labels;          // kIgnoredLabel: not counted
  std::vector<int64_t> chunks;          // as in Case
  bool mask_given = true;
  std::string digest;  // sha256 of a user's file; empty for synthetic batches

  bool valid(int64_t b, int64_t s) const { return attention_mask[b * S + s] != 0; }
};

/// Makes batch `index` of the case's seed.
Batch make_batch(const Case& c, int64_t index = 0);

/// Fills position_ids from the mask; `offset` is added to every one.
void set_positions(Batch& batch, int64_t offset = 0);
/// Fills labels from the ids: kIgnoredLabel on padding, on the first token after padding and in the
/// first S/4 columns (docs/formats.md 2).
void set_labels(Batch& batch);
/// A label other than kIgnoredLabel is predicted by some token.
bool counts_labels(const Batch& batch);
/// Throws Error (artefact) unless ids are inside the vocabulary, the mask is 0/1 and sizes agree.
void validate(const Batch& batch, const ModelConfig& config, const std::string& where);

}  // namespace dsv32
