#include "src/bridge/tap_flow.h"

#include <utility>

#include "src/bridge/bridge.h"
#include "src/model/errors.h"

namespace dsv32 {
namespace {

using torch::Tensor;

TapName parse(const std::string& name) {
  const auto tap = parse_tap(name);
  if (!tap) {
    throw Error(
        ExitCode::internal,
        {.where = "taps", .what = "tap", .expected = "a name of the vocabulary", .got = name});
  }
  return *tap;
}

/// Taps that stay float32 in every 16-bit model (docs/spec.md 1, bf16 mode).
bool stays_float32(const TapName& tap) {
  const std::string_view name = tap.info.name;
  return name == "ix.weights" || name == "ix.scores" || name == "router.logits" ||
         name == "router.weights" || name.starts_with("kl.") || tap.info.kind == TapKind::scalar;
}

/// The axis of query positions, and of key positions (-1: none).
struct Axes {
  int64_t query, key;
};
Axes axes_of(TapKind kind) {
  if (kind == TapKind::attention) return {2, 3};
  if (kind == TapKind::scores || kind == TapKind::keys) return {1, 2};
  return {1, -1};
}

}  // namespace

TapFlow::TapFlow(const ModelConfig& config, const Batch& batch, const RunOptions& options,
                 TapStyle style, torch::Device device)
    : config_(config),
      options_(options),
      style_(std::move(style)),
      device_(device),
      S_(batch.S),
      chunked_(!batch.chunks.empty()),
      kept_(kept_queries(config, batch.B, batch.S)) {
  if (chunked_) kept_ = spread_queries(S_, S_);
  if (options.feeding != Feeding::free && options.feed == nullptr) {
    throw Error(ExitCode::internal,
                {.where = "taps", .what = "feed", .expected = "a trace", .got = "none"});
  }
}

void TapFlow::begin_chunk(int64_t begin, int64_t end) { chunk_ = {begin, end}; }

bool TapFlow::stays_exact(const TapName& tap) const {
  return stays_float32(tap) || (style_.also_exact && style_.also_exact(tap));
}

Tensor TapFlow::round(const TapName& tap, const Tensor& own) const {
  return stays_exact(tap) ? own : style_.round(own);
}

DType TapFlow::stored_type(const TapName& tap) const {
  if (tap.info.is_decision()) return DType::int32;
  return is_narrow(options_.dtype) && stays_exact(tap) ? DType::float32 : options_.dtype;
}

Tensor TapFlow::fed(const TapName& tap) const {
  const HostTensor* host = options_.feed->find(tap.full);
  if (host == nullptr) return {};
  Tensor value = to_torch(*host);
  if (tap.info.kind == TapKind::scalar) return value.to(device_, style_.exact);
  const Axes axes = axes_of(tap.info.kind);
  value = value.narrow(axes.query, chunk_.begin, chunk_.end - chunk_.begin);
  if (axes.key >= 0) value = value.narrow(axes.key, 0, chunk_.end);
  if (tap.info.is_decision()) return value.to(device_, torch::kInt64);
  return value.to(device_, stays_exact(tap) ? style_.exact : style_.ordinary);
}

Tensor TapFlow::put(const std::string& name, const Tensor& own) {
  const TapName tap = parse(name);
  const Tensor rounded = round(tap, own);
  if (replaying_) {
    return options_.slopes && torch::GradMode::is_enabled() ? watched(tap, rounded) : rounded;
  }
  record(tap, rounded);
  Tensor used = options_.feeding == Feeding::staged ? fed(tap) : Tensor();
  if (!used.defined()) used = rounded;
  return style_.hand_on ? style_.hand_on(used, name + std::to_string(chunk_.begin)) : used;
}

/// What later stages read is the fed value in either case. Where the feed has the gradient by the
/// tap, the graph ends here and another one begins; else gradients pass straight through.
Tensor TapFlow::watched(const TapName& tap, const Tensor& own) {
  if (tap.info.name == "hidden") return own;  // lies between two graphs: `upstream`
  Tensor used = options_.feeding == Feeding::staged ? fed(tap) : Tensor();
  if (!used.defined()) used = own;
  if (style_.hand_on && options_.feeding == Feeding::staged)
    used = style_.hand_on(used, tap.full + std::to_string(chunk_.begin));
  if (!own.requires_grad()) return used.detach();
  const Tensor slope = fed_slope(tap.full, own);
  if (slope.defined()) {
    cuts_.roots.push_back(own);
    cuts_.factors.push_back(slope);
    used = used.detach().clone().requires_grad_(true);
  } else if (!used.is_same(own)) {
    used = own + (used - own).detach().nan_to_num(0, 0, 0);
  }
  used.retain_grad();
  watched_.emplace_back(tap, used);
  return used;
}

Tensor TapFlow::fed_slope(const std::string& name, const Tensor& like) const {
  if (options_.feeding != Feeding::staged) return {};
  const auto found = options_.feed->slopes.find(name);
  if (found == options_.feed->slopes.end()) return {};
  const Tensor slope = to_torch(found->second).to(device_, like.scalar_type());
  return style_.hand_on ? style_.hand_on(slope, slope_name(name)) : slope;
}

TapFlow::Cuts TapFlow::take_cuts() { return std::exchange(cuts_, {}); }

void TapFlow::put_slope(const std::string& name, const Tensor& slope) {
  if (options_.slopes && slope.defined()) record_slope(parse(name), slope);
}

Tensor TapFlow::upstream(const std::string& name, const Tensor& own) {
  if (!options_.slopes || !own.defined()) return own;
  record_slope(parse(name), own);
  const Tensor slope = fed_slope(name, own);
  return slope.defined() ? slope : own;
}

void TapFlow::keep_slopes() {
  for (const auto& [tap, value] : watched_) {
    const Tensor slope = value.grad();
    record_slope(tap, slope.defined() ? slope : torch::zeros_like(value));
  }
  watched_.clear();
}

void TapFlow::record_slope(const TapName& tap, const Tensor& slope) {
  if (options_.wanted && !options_.wanted(slope_name(tap.full))) return;
  slopes_[tap.full] = to_host(slope, stored_type(tap));
}

TapFlow::Kept TapFlow::kept_of(int64_t first, int64_t count) const {
  Kept kept;
  for (size_t i = 0; i < kept_.size(); ++i) {
    if (kept_[i] < first || kept_[i] >= first + count) continue;
    kept.places.push_back(static_cast<int64_t>(i));
    kept.in_block.push_back(kept_[i] - first);
  }
  return kept;
}

Tensor TapFlow::indices(const std::vector<int64_t>& values) const {
  return torch::tensor(values, torch::kInt64).to(device_);
}

Tensor TapFlow::put_queries(const std::string& name, const Tensor& own, int64_t first) {
  if (keeps_all() && own.size(2) == chunk_.end - chunk_.begin) return put(name, own);
  const TapName tap = parse(name);
  const Tensor rounded = round(tap, own);
  if (replaying_) return rounded;
  const Kept kept = kept_of(first, own.size(2));
  if (!options_.wanted || options_.wanted(name)) {
    auto& rows = rows_[name];
    const Tensor some = rounded.detach().index_select(2, indices(kept.in_block));
    rows.push_back(torch::constant_pad_nd(some, {0, chunk_.end - own.size(3)}));
    if (first + own.size(2) == S_) {
      keep(tap, torch::cat(rows, 2));
      rows_.erase(name);
    }
  }
  Tensor used = rounded;
  const HostTensor* feed =
      options_.feeding == Feeding::staged ? options_.feed->find(name) : nullptr;
  if (feed != nullptr && !kept.places.empty()) {
    const Tensor given = to_torch(*feed)
                             .narrow(3, 0, own.size(3))
                             .index_select(2, torch::tensor(kept.places, torch::kInt64))
                             .to(device_, rounded.scalar_type());
    used = rounded.index_copy(2, indices(kept.in_block), given);
  }
  return style_.hand_on ? style_.hand_on(used, name + std::to_string(first)) : used;
}

void TapFlow::put_kept(const std::string& name, const Tensor& rows) {
  const TapName tap = parse(name);
  record(tap, round(tap, rows));
}

Tensor TapFlow::skip(int64_t layer, std::string_view first, std::string_view last) const {
  if (options_.feeding != Feeding::staged || !options_.wanted || options_.backward) return {};
  bool between = false;
  for (const TapInfo& info : tap_vocabulary()) {
    between = between || info.name == first;
    if (between && info.per_layer && options_.wanted(layer_tap(layer, info.name))) return {};
    if (info.name == last) break;
  }
  const TapName tap = parse(layer_tap(layer, last));
  const Tensor value = fed(tap);
  if (!value.defined() || !style_.hand_on) return value;
  return style_.hand_on(value, tap.full + std::to_string(chunk_.begin));
}

Tensor TapFlow::usable_decision(const TapName& tap, const Tensor& fed) const {
  // An invalid pick is judged elsewhere; here it must only not break the run.
  if (tap.info.kind == TapKind::topk) return fed.masked_fill((fed < 0) | (fed >= chunk_.end), -1);
  return fed.clamp(0, config_.n_routed_experts - 1);
}

Tensor TapFlow::decide(const std::string& name, const Tensor& own) {
  const TapName tap = parse(name);
  record(tap, own);
  Tensor used = options_.feeding == Feeding::free ? Tensor() : fed(tap);
  used = used.defined() ? usable_decision(tap, used) : own;
  decisions_[name].push_back(used);
  return used;
}

void TapFlow::replay_feed() {
  replay();
  for (const std::string& name : options_.feed->names()) {
    const TapName tap = parse(name);
    if (tap.info.is_decision()) decisions_[name] = {usable_decision(tap, fed(tap))};
  }
}

Tensor TapFlow::decision(const std::string& name) const {
  return torch::cat(decisions_.at(name), 1);
}

void TapFlow::keep(const TapName& tap, const Tensor& value) {
  const DType dtype = stored_type(tap);
  if (options_.measure && measured(options_, tap.full, seen_by_host(value, dtype), trace_)) return;
  trace_.put(tap.full, to_host(value, dtype, options_.room));
}

void TapFlow::record(const TapName& tap, const Tensor& value) {
  if (options_.wanted && !options_.wanted(tap.full)) return;
  if (!chunked_) return keep(tap, value);
  auto& pieces = pieces_[tap.full];
  if (pieces.empty()) order_.push_back(tap.full);
  pieces.push_back({chunk_, value.detach().to(torch::kCPU, scalar_type(stored_type(tap)))});
}

Tensor TapFlow::join(const TapName& tap, const std::vector<Piece>& pieces) const {
  if (pieces.size() == 1) return pieces[0].value;
  const Axes axes = axes_of(tap.info.kind);
  const double fill =
      tap.info.kind == TapKind::scores ? -std::numeric_limits<double>::infinity() : 0.0;
  std::vector<Tensor> parts;
  for (const Piece& piece : pieces) {
    const bool grows = axes.key >= 0 && piece.chunk.end < S_;
    parts.push_back(grows ? torch::constant_pad_nd(piece.value, {0, S_ - piece.chunk.end}, fill)
                          : piece.value);
  }
  return torch::cat(parts, axes.query);
}

Trace TapFlow::finish() {
  for (const std::string& name : order_) {
    const TapName tap = parse(name);
    keep(tap, join(tap, pieces_[name]));
    pieces_.erase(name);
  }
  return std::move(trace_);
}

}  // namespace dsv32
