#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/model/config.h"
#include "src/model/objective.h"
#include "src/model/tensor.h"

namespace dsv32 {

/// How a tap is laid out and judged.
enum class TapKind {
  token,      // [B,S,...]: one row per query token
  key,        // [B,T,D]: one row per key token (ix.k)
  attention,  // [B,H,S,T]: one row per (b,h,s)
  scores,     // [B,S,T] with -inf where a key is not visible (ix.scores)
  keys,       // [B,S,T] with 0 off the support (kl.target, kl.student, kl.dscores)
  topk,       // [B,S,index_topk] int32 set, -1 for none
  experts,    // [B,S,K] int32 set
  scalar,     // []
  series,     // [steps]: one value per training step; gen.*: one token or row per decoding step
  gradient,   // the weight's shape: one row per index of the first dimension
};

/// One tap of the vocabulary, without the layer.
struct TapInfo {
  std::string_view name;  // "attn.ctx"; for layer taps without "layers.N."
  TapKind kind;
  bool per_layer;
  /// Taps that the stage reads ("hidden" is that of the layer before).
  std::vector<std::string_view> inputs;

  /// A set that the model chooses, which another run can replay.
  bool is_decision() const { return kind == TapKind::topk || kind == TapKind::experts; }
};

/// Every tap in paper order (docs/spec.md 5), then the KL and training ones. `loss.kl` is there
/// twice: of a layer and of the model.
const std::vector<TapInfo>& tap_vocabulary();

/// A tap by its full name. "layers.3.attn.ctx" has layer 3 and the info of attn.ctx.
/// "grad.<weight>" and "param.<weight>" have kind gradient, info.name "grad" or "param", and the
/// layer of the weight.
struct TapName {
  std::string full;
  std::optional<int64_t> layer;
  TapInfo info;
};
/// Parses a full name; nullopt for one outside the vocabulary.
std::optional<TapName> parse_tap(const std::string& full);
/// "dtap.TAP", the name of the gradient by a tap; and the tap that such a name is about, nullopt
/// for every other name. A decision has no gradient.
std::string slope_name(const std::string& tap);
std::optional<TapName> parse_slope(const std::string& name);
/// The tap of this name is a decision.
bool is_decision(const std::string& full);
std::string layer_tap(int64_t layer, std::string_view name);
/// The name without its layer: "layers.3.attn.ctx" -> "attn.ctx",
/// "grad.model.layers.3.mlp.gate.weight" -> "grad.mlp.gate.weight"; other names as they are. The
/// spelling of KnownBug::first_tap.
std::string tap_stem(const std::string& full);
/// Full names of what the stage of this tap reads: `hidden` becomes the residual stream before the
/// layer (`embed` in layer 0), `mlp.out` of a dense layer reads `ffn_norm`. Empty for gradients.
std::vector<std::string> tap_inputs(const TapName& tap, const ModelConfig& config);

/// Shape of a tap for this config and batch; nullopt where the model has no such tap (router taps
/// of a dense layer, a layer or weight that is not there) and for series. T = S of the whole batch.
std::optional<Shape> tap_shape(const TapName& tap, const ModelConfig& config, int64_t B, int64_t S);

/// All forward taps that this model makes, in execution order: the order of "first divergence". The
/// indexer's taps are there in dense mode too (Hugging Face computes them), but topk is then not
/// judged.
std::vector<std::string> forward_taps(const ModelConfig& config);
/// The taps of the indexer's KL, layer by layer, then the model's loss; none without a KL stage.
std::vector<std::string> kl_taps(const ModelConfig& config, const Objective& objective);
/// All gradients ("grad.<weight>") in back-propagation order (head first, embedding last), the
/// indexer's and the buffers' left out.
std::vector<std::string> gradient_taps(const ModelConfig& config);
/// Those of one layer under LM, from its MLP back to its first norm.
std::vector<std::string> layer_gradient_taps(const ModelConfig& config, int64_t layer);
/// The gradients that an objective gives: LM everything but the indexer, the KL the indexer alone.
std::vector<std::string> gradient_taps(const ModelConfig& config, const Objective& objective);

/// What is kept of a tap that is too large to hand over whole, or of which only some rows are known
/// (one tensor of a weight's gradient: its whole is one row). docs/formats.md 4 and 8.
struct TapSketch {
  Shape shape;  // of the full tap
  /// Chosen rows: b * S + s; for gradients the first index of the weight.
  std::vector<int64_t> row_index;
  std::vector<float> rows;         // [rows, row size] complete values
  std::vector<float> row_norms;    // [row count] L2 norms (gradients: one); empty: not known
  std::vector<float> projections;  // [row count, 8] seeded +-1 projections; empty: not known

  /// Nothing is known of the rows that are not there.
  bool rows_only() const { return row_norms.empty(); }
};

/// How many independent numbers would stray as a row's errors do, and as those of all heads of a
/// token: 1 / mean squared cosine between the errors of two tokens. One factor that is off moves
/// them along a line, whatever their width. 0: not known, of too few tokens or none with an error.
struct Modes {
  double row = 0, token = 0;
};

/// What is kept of a tap that was measured against another run's and then dropped.
struct TapDistance {
  /// ||X - O|| of each judged row, by the row's number; 0 where a row is not judged.
  std::vector<double> rows;
  /// Root mean square of X - O in each lane (element of a row); empty where rows have none.
  std::vector<double> lanes;
  Modes modes;
};

/// Named host tensors in execution order plus string metadata: what every implementation hands to
/// the judge.
class Trace {
 public:
  std::map<std::string, std::string> metadata;   // docs/formats.md 4
  std::map<std::string, TapSketch> sketches;     // of taps that are not there whole
  std::map<std::string, TapDistance> distances;  // of taps that were measured and are not there
  /// By tap: the gradient of the objective with respect to it, in its shape (`dtap.TAP` of a file).
  std::map<std::string, HostTensor> slopes;

  /// Replaces a tensor of the same name.
  void put(const std::string& name, HostTensor value);
  const HostTensor* find(const std::string& name) const;
  bool has(const std::string& name) const { return find(name) != nullptr; }
  const std::vector<std::string>& names() const { return names_; }
  bool empty() const { return names_.empty() && sketches.empty(); }
  /// Drops a tensor (to free memory after it was judged).
  void erase(const std::string& name);

 private:
  std::vector<std::string> names_;
  std::map<std::string, HostTensor> values_;
};

}  // namespace dsv32
