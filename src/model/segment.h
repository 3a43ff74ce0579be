#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "src/model/batch.h"
#include "src/model/config.h"
#include "src/model/tensor.h"
#include "src/model/weights.h"

/// Parts of the model that run alone, so that no more than one of them need fit in memory.
namespace dsv32 {

enum class SegmentKind {
  embed,      // tokens to the residual stream
  attention,  // the first half of a layer: h += attention(norm(h))
  mlp,        // its second half: h += mlp(norm(h))
  head,       // final norm, logits, loss
};

/// One part of the model, from the residual stream before it to the one behind it.
struct Segment {
  SegmentKind kind = SegmentKind::embed;
  int64_t layer = -1;  // of attention and mlp

  bool operator==(const Segment&) const = default;
};

/// "embed", "layer 3 attention", "layer 3 mlp", "head".
std::string to_string(const Segment& segment);
/// The forward taps that it makes, in execution order.
std::vector<std::string> segment_taps(const ModelConfig& config, const Segment& segment);
/// The weights that it reads, in paper order.
std::vector<WeightSpec> segment_specs(const ModelConfig& config, const Segment& segment);

/// Routed experts [first, last) of a layer.
struct ExpertRange {
  int64_t first = 0, last = 0;
};
/// The parts of the routed experts whose gradients are there together: all of them while they are
/// small, else eight at a time. A number of the config's, so that no verdict depends on a machine.
std::vector<ExpertRange> expert_ranges(const ModelConfig& config);
/// The gradients ("grad.<weight>") of a layer's segment that a part of its backward pass gives, in
/// back-propagation order: those of these routed experts, or of everything else. The indexer has
/// none (docs/spec.md 2).
std::vector<std::string> segment_gradients(const ModelConfig& config, const Segment& segment,
                                           const std::optional<ExpertRange>& experts);

/// The residual stream between two segments, as one implementation keeps it between them: its own
/// names and dtypes. Every implementation starts from one that holds `hidden` alone.
using StreamState = std::map<std::string, HostTensor>;

/// The stream before `layer` where a run begins there: float32 [B,S,hidden], bell * 2^-3 of the
/// stream "hidden.{layer}" of the seed, exact in bf16. docs/formats.md 6.
HostTensor synthetic_hidden(uint64_t seed, int64_t layer, const Shape& shape);
/// The gradient by `hidden` of `layer` where a backward pass begins there: float32 [B,S,hidden],
/// bell * 2^-9 of the stream "dhidden.{layer}" of the seed, exact in bf16; 0 at padded tokens,
/// where no loss has one. docs/formats.md 6.
HostTensor synthetic_gradient(uint64_t seed, int64_t layer, const Batch& batch, int64_t width);
/// The query positions of which a trace keeps attn.logits and attn.probs [B,H,n,T]: every one while
/// an attention matrix is small, else 64 spread over [0, S). docs/formats.md 6.
std::vector<int64_t> kept_queries(const ModelConfig& config, int64_t B, int64_t S);
/// The positions that a tap with `kept` of S queries holds: floor(i (S - 1) / (kept - 1)).
std::vector<int64_t> spread_queries(int64_t kept, int64_t S);
/// The positions of which a segment's run keeps the logits [B,n,vocab]: every one, or 64.
std::vector<int64_t> kept_logit_rows(const ModelConfig& config, int64_t B, int64_t S);
/// Queries whose attention rows are computed together: S while an attention matrix is small.
int64_t queries_at_once(const ModelConfig& config, int64_t B, int64_t S);
/// Rows of the vocabulary whose logits are computed together.
inline constexpr int64_t kVocabularyBlock = 8192;

/// Rows `ids` of a tensor's first axis, in that order, read one by one.
HostTensor gather_rows(const WeightSource& source, const WeightSpec& spec,
                       const std::vector<int64_t>& ids);

}  // namespace dsv32
