#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "harness/judge/verdict.h"
#include "src/model/batch.h"
#include "src/model/config.h"
#include "src/model/tensor.h"
#include "src/model/trace.h"

/// One judged tap with all that its verdict needs.
namespace dsv32::harness {

using dsv32::to_string;  // of shapes and dtypes, next to those of verdict.h

/// Relative perturbation of a probe: far above float32 rounding, far below anything nonlinear.
inline constexpr double kProbePerturbation = 1.0 / 4096;

/// The tensors that a judged tap is measured against, all of one shape. Of all but the oracle the
/// distance to it serves as well, where the tensor itself was dropped.
struct Yardstick {
  const HostTensor* oracle = nullptr;  // float64; nullptr: there is no such tap
  /// Of the judged side's dtype; nullptr: the cap alone decides.
  const HostTensor* reference = nullptr;
  /// Of a float32 run whose inputs and weights were perturbed by relative kProbePerturbation;
  /// nullptr: no cap. One probe serves every dtype: for a dtype of epsilon e the sensitivity of a
  /// row is ||P-O|| * (e / 2) / kProbePerturbation.
  const HostTensor* probe = nullptr;
  /// As `reference`, with sums in another order and 16-bit values rounded at other places: a row's
  /// noise is the larger of both. nullptr: none was made.
  const HostTensor* twin = nullptr;
  const TapDistance* reference_distance = nullptr;
  const TapDistance* probe_distance = nullptr;
  const TapDistance* twin_distance = nullptr;
};

/// Relative noise of tensors of one kind, as the gradients of a layer's experts: the median of
/// theirs. An expert that few tokens reach strays by a few numbers in all, so that the error of one
/// run, two or three may be small by chance: there it is that of its siblings.
struct Siblings {
  double reference = 0;  // ||R - O|| / ||O||; 0: no sibling is known
  double probe = 0;      // of one rounding of the judged dtype, ||P - O|| / ||O||
};

/// The piece of a tap that one rank of a sharded candidate handed in.
struct RankPiece {
  int64_t rank = 0, dim = 0, first = 0, last = 0;  // indices [first, last) of axis `dim`
};
/// By tensor: "layers.0.attn.ctx", "dtap.layers.0.attn.ctx".
using RankPieces = std::map<std::string, std::vector<RankPiece>>;

/// What one rank of a sharded candidate handed in of a tensor that is the sum over the ranks.
struct RankSummand {
  int64_t rank = 0;
  HostTensor value;  // undefined: nothing
};
/// By tensor, of every rank.
using RankSums = std::map<std::string, std::vector<RankSummand>>;

struct Comparison {
  Subject subject;
  const ModelConfig* config = nullptr;
  const Batch* batch = nullptr;
  TapName tap;
  Mode mode = Mode::staged;
  DType dtype = DType::float32;        // the judged side's dtype
  const HostTensor* judged = nullptr;  // nullptr for a sketch
  /// Of the tap; of a decision, of the scores that it follows from (ix.scores, router.logits).
  Yardstick yardstick;
  Siblings siblings = {};
  /// Not all inputs of a staged tap are there, so that its stage begins further up.
  bool fed_in_part = false;
  /// Attention and keys taps: attended keys [B,S,T] as 0/1 from the decisions in force (nullptr:
  /// all visible keys).
  const std::vector<uint8_t>* support = nullptr;
  /// The declared dialect fills the experts of excluded groups with 0: they are chosen before those
  /// of negative score, and ties between them are free.
  bool excluded_experts_at_zero = false;
  /// Name of the config when the judged side is a golden: its relative distance is judged as well.
  std::string golden_config = {};
  const std::vector<RankPiece>* pieces = nullptr;      // of the judged side; nullptr: it came whole
  const std::vector<RankSummand>* summands = nullptr;  // likewise; nullptr: it is no sum of ranks'

  /// Whose cap holds: where a rounding goes through more than one op it is as end to end.
  Mode cap_mode() const { return fed_in_part ? Mode::forced : mode; }
};

}  // namespace dsv32::harness
