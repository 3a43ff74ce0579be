#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/model/config.h"

namespace dsv32 {

/// A change of synthetic weights: value * scale + add, on one index of the first or of the last
/// dimension. docs/formats.md 3.
struct WeightEdit {
  std::string name;               // a checkpoint name; `*` stands for any digits
  std::optional<int64_t> row;     // index of the first dimension, or
  std::optional<int64_t> column;  // of the last one
  double scale = 1;
  double add = 0;

  bool operator==(const WeightEdit&) const = default;
};

/// At which end of row B-1 the padding is.
enum class PadSide { left, right };

/// Greedy decoding (docs/formats.md 14): how long it goes on, and what ends a row.
struct Decoding {
  int64_t steps = 24;          // tokens emitted per row, N
  std::optional<int64_t> eos;  // a row that emitted it is finished; nullopt: none ends

  bool operator==(const Decoding&) const = default;
};

/// What is computed: a config (with overrides applied), a seed and a batch shape.
/// docs/formats.md 3.
struct Case {
  std::string name;
  ModelConfig config;          // overrides already applied
  std::string config_name;     // "tiny", "small", ...
  std::string overrides_json;  // RFC 8785 JSON of the overrides, "{}" if none
  uint64_t seed = 1;
  int64_t B = 0;
  int64_t S = 0;
  int64_t pad = 0;                // masked positions at one end of row B-1
  double bias_offset = 0;         // added to every e_score_correction_bias
  std::vector<int64_t> chunks;    // lengths that sum to S; empty: one pass
  std::vector<WeightEdit> edits;  // of the synthetic weights, in this order
  PadSide pad_side = PadSide::left;
  int64_t position_offset = 0;  // added to every position id
  int config_style = 4;         // of the config.json that is written: 4 as released, 5 as
                                // transformers 5 writes it
  std::string batch;            // sha256 of a user's batch file; empty: synthetic batches
  bool fp8 = false;             // its weights are the synthetic-fp8 ones. docs/formats.md 7
  bool mask_given = true;       // false: no attention mask is passed at all (tiny-nopad)
  bool sparse = true;           // selection must be exercised: else the check is vacuous
  bool made_up = false;         // not of the list, or with own data: some row must select
  bool training = false;        // for the training suites only
  Decoding decoding = {};       // of mode generate, after the prompts
  std::string golden;           // "full", "sketch" or "none"
  std::string purpose;
};

/// True when half or more of the judged query rows see more than index_topk keys.
bool exercises_selection(const Case& c);

}  // namespace dsv32
