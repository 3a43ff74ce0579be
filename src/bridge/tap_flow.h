#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "src/bridge/libtorch.h"
#include "src/model/implementation.h"

namespace dsv32 {

/// How an implementation keeps the values between its taps.
struct TapStyle {
  torch::ScalarType ordinary = torch::kFloat32;  // of what `round` gives
  torch::ScalarType exact = torch::kFloat32;     // of taps that stay float32 in the 16-bit modes
  /// Rounds an ordinary tap as it is stored (docs/spec.md 1, bf16 mode).
  std::function<torch::Tensor(const torch::Tensor&)> round;
  /// Taps that this implementation keeps in float32 besides those of every 16-bit model; empty:
  /// none.
  std::function<bool(const TapName&)> also_exact = {};
  /// What later stages read of a value; empty: the value. `place` is unique in a run.
  std::function<torch::Tensor(const torch::Tensor&, const std::string& place)> hand_on = {};
};

/// Where every tap passes through: it records what the model computed and hands back what the next
/// stage is to read. That one place makes the three ways of feeding (free, forced, staged): the
/// model itself does not know them.
class TapFlow {
 public:
  TapFlow(const ModelConfig& config, const Batch& batch, const RunOptions& options, TapStyle style,
          torch::Device device);

  /// Begins a chunk with the query positions [begin, end); keys so far: `end`.
  void begin_chunk(int64_t begin, int64_t end);
  /// Records a continuous tap and returns the value that later stages read.
  torch::Tensor put(const std::string& name, const torch::Tensor& own);
  /// The same for the rows of queries [first, first + q) of attn.logits or attn.probs, own
  /// [B,H,q,T]; blocks come in ascending order, and may leave out the last keys, which none of
  /// their queries uses. Of a large matrix only kept_queries are recorded, and only those can be
  /// fed.
  torch::Tensor put_queries(const std::string& name, const torch::Tensor& own, int64_t first);
  /// Records rows of a tap that is too large to be whole; nothing reads it, so it is never fed.
  void put_kept(const std::string& name, const torch::Tensor& rows);
  /// Records a decision (topk, router.experts), int64, and returns the one in force; remembers it
  /// for `replay`.
  torch::Tensor decide(const std::string& name, const torch::Tensor& own);

  /// The fed value of a layer's tap `last` in a staged run that wants none of the taps of this
  /// layer from `first` to `last`: what lies between need not be computed. Undefined: it must be.
  torch::Tensor skip(int64_t layer, std::string_view first, std::string_view last) const;

  /// From here on nothing is recorded and `decision` gives what was in force: for the backward
  /// pass.
  void replay() { replaying_ = true; }
  /// The same without a pass before it: the decisions are those of the feed.
  void replay_feed();
  bool replaying() const { return replaying_; }
  /// With RunOptions::slopes a replayed tap is where back-propagation is looked at, and cut where
  /// the feed has a gradient of its own. What was cut off is to be back-propagated as well:
  struct Cuts {
    std::vector<torch::Tensor> roots, factors;
  };
  Cuts take_cuts();
  /// Of a model without autograd: the gradient by a tap, in its shape.
  void put_slope(const std::string& name, const torch::Tensor& slope);
  /// Of a tap between two graphs: records what arrived there, and gives what goes on.
  torch::Tensor upstream(const std::string& name, const torch::Tensor& own);
  /// After a pass of back-propagation: what arrived at the taps since the last call.
  void keep_slopes();
  std::map<std::string, HostTensor> take_slopes() { return std::move(slopes_); }

  /// The decision in force over all chunks, [B,S,*] int64.
  torch::Tensor decision(const std::string& name) const;

  /// Gives everything recorded, chunks joined (docs/formats.md 4).
  Trace finish();

 private:
  struct Chunk {
    int64_t begin = 0, end = 0;
  };
  struct Piece {
    Chunk chunk;
    torch::Tensor value;
  };
  bool stays_exact(const TapName& tap) const;
  torch::Tensor round(const TapName& tap, const torch::Tensor& own) const;
  torch::Tensor fed(const TapName& tap) const;  // undefined when the feed has no such tap
  torch::Tensor usable_decision(const TapName& tap, const torch::Tensor& fed) const;
  void record(const TapName& tap, const torch::Tensor& value);
  void keep(const TapName& tap, const torch::Tensor& value);
  torch::Tensor watched(const TapName& tap, const torch::Tensor& own);
  torch::Tensor fed_slope(const std::string& name, const torch::Tensor& like) const;
  void record_slope(const TapName& tap, const torch::Tensor& slope);
  /// Of the kept queries those of [first, first + count): places among the kept, and in the block.
  struct Kept {
    std::vector<int64_t> places, in_block;
  };
  Kept kept_of(int64_t first, int64_t count) const;
  bool keeps_all() const { return static_cast<int64_t>(kept_.size()) == S_; }
  torch::Tensor indices(const std::vector<int64_t>& values) const;
  torch::Tensor join(const TapName& tap, const std::vector<Piece>& pieces) const;
  DType stored_type(const TapName& tap) const;

  const ModelConfig& config_;
  const RunOptions& options_;
  TapStyle style_;
  torch::Device device_;
  int64_t S_;
  Chunk chunk_;
  bool replaying_ = false;
  bool chunked_;
  Trace trace_;                     // of a run in one pass
  std::vector<std::string> order_;  // of a chunked run, joined at its end
  std::map<std::string, std::vector<Piece>> pieces_;
  std::vector<int64_t> kept_;                               // queries of attention taps
  std::map<std::string, std::vector<torch::Tensor>> rows_;  // of attention taps, block by block
  std::map<std::string, std::vector<torch::Tensor>> decisions_;
  Cuts cuts_;
  std::vector<std::pair<TapName, torch::Tensor>> watched_;  // of the graph at hand
  std::map<std::string, HostTensor> slopes_;
};

}  // namespace dsv32
