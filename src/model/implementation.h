#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "src/model/batch.h"
#include "src/model/decoding.h"
#include "src/model/dialect.h"
#include "src/model/objective.h"
#include "src/model/segment.h"
#include "src/model/summation.h"
#include "src/model/trace.h"
#include "src/model/weights.h"

namespace dsv32 {

/// How the stages of a run are fed. docs/architecture.md 3.
enum class Feeding {
  free,    // own values, own decisions
  forced,  // own values; the decisions (topk, router.experts) of `feed`
  staged,  // every stage reads its inputs from `feed` where it has them, its own value where not
};

struct RunOptions {
  /// float64: the oracle; bfloat16 and float16: rounding modes (docs/spec.md 1).
  DType dtype = DType::float32;
  Dialect dialect = {};
  /// Layers that compute another dialect, the reference only.
  std::map<int64_t, Dialect> layer_dialects = {};
  /// The reference only: the optimized model adds as its kernels do.
  Summation summation = Summation::blocked;
  Objective objective = {};
  bool backward = false;  // the gradients of the objective too
  /// With `backward`: the gradient by each tap too (Trace::slopes). In a staged run each op's
  /// backward pass reads its upstream gradients from `feed` where they are there, so that what a
  /// tap or a weight gets is that of the ops next to it alone; the reference only.
  bool slopes = false;
  Feeding feeding = Feeding::free;
  const Trace* feed = nullptr;  // for forced and staged
  /// Taps to keep; empty function: all.
  std::function<bool(const std::string&)> wanted = {};
  /// Measures a finished tap, which then is not kept: its distance goes into the trace in its
  /// place. nullopt: it is kept. Empty function: all are. The reference only.
  std::function<std::optional<TapDistance>(const std::string&, const HostTensor&)> measure = {};
  /// Makes the memory of a tap that is kept, and of the stream behind a segment; empty: the heap.
  std::function<HostTensor(DType, const Shape&)> room = {};
  /// The relative size of the random perturbation of every weight and every fed input (a condition
  /// probe); 0: none.
  double perturbation = 0;
  uint64_t perturbation_seed = 0;
  /// The batch holds prompts, and the model goes on by itself, one token after the other through
  /// its caches. Taps are those of the whole history (History::batch), `gen.tokens` comes with
  /// them, `loss.lm` does not. Free feeding, without gradients.
  std::optional<Decoding> decoding = {};
  /// Only this part of the model, in one pass of the whole batch. It reads the residual stream from
  /// `stream` and leaves there the one behind it.
  std::optional<Segment> segment = {};
  StreamState* stream = nullptr;
  /// With `segment`, a half of a layer, and `backward`: the gradients of its weights from the one
  /// by the stream behind it, which is `hidden` of `gradient`; that by the stream before it is left
  /// there. The half is run again from `stream`, which stays, under the decisions of `feed`, and no
  /// forward tap is given.
  StreamState* gradient = nullptr;
  /// Of a backward pass over the routed experts of a layer these alone; `gradient` keeps what they
  /// hand back. The run without it comes behind those of all experts and gives the rest.
  std::optional<ExpertRange> experts = {};
  std::string device = "cpu";
  /// Called now and then with a short text; may throw to stop the run.
  std::function<void(const std::string&)> progress = {};
};

/// What `options.measure` says of a finished tap goes into the trace; false: it is to be kept.
bool measured(const RunOptions& options, const std::string& name, const HostTensor& value,
              Trace& trace);
/// Puts a finished tap into the trace, or what `options.measure` says of it.
void keep_or_measure(const RunOptions& options, const std::string& name, HostTensor value,
                     Trace& trace);

/// One interface for the reference and the optimized model.
class Implementation {
 public:
  virtual ~Implementation() = default;
  /// Runs a batch and returns its taps (own values: what each stage computed, also where it was fed
  /// another value), gradients last. Topk and experts in a forced run are the model's own choice;
  /// the values use the fed one.
  virtual Trace run(const Batch& batch, const RunOptions& options) const = 0;
  virtual std::string name() const = 0;
};

}  // namespace dsv32
