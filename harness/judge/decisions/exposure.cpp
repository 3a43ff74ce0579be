#include "harness/judge/decisions/exposure.h"

#include <algorithm>

namespace dsv32::harness {
namespace {

using Rows = std::vector<uint8_t>;

// Adds the rows whose decision of this tap may turn.
void add_turning(const std::map<std::string, Margins>& margins, const std::string& tap,
                 Rows& rows) {
  const auto found = margins.find(tap);
  if (found == margins.end()) return;
  for (size_t i = 0; i < rows.size(); ++i)
    if (found->second[i] <= 1) rows[i] = 1;
}

bool holds_any(const Rows& rows) {
  return std::any_of(rows.begin(), rows.end(), [](uint8_t bit) { return bit != 0; });
}

bool is_any_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool sums_over_rows(const TapName& tap) {
  return tap.info.kind == TapKind::scalar || tap.info.kind == TapKind::gradient ||
         tap.info.kind == TapKind::series;
}

}  // namespace

Exposure::Exposure(const ModelConfig& config, const Batch& batch,
                   const std::map<std::string, Margins>& margins)
    : batch_(batch) {
  Rows rows(batch.B * batch.S, 0);
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    Layer layer{.input = rows, .seen = spread_to_later_queries(rows), .selected = {}, .routed = {}};
    layer.selected = layer.seen;
    add_turning(margins, layer_tap(l, "topk"), layer.selected);
    layer.routed = layer.selected;
    add_turning(margins, layer_tap(l, "router.experts"), layer.routed);
    rows = layer.routed;
    layers_.push_back(std::move(layer));
  }
  output_ = rows;
  any_ = holds_any(output_);
}

Exposure::Rows Exposure::spread_to_later_queries(const Rows& keys) const {
  Rows out = keys;
  for (int64_t b = 0; b < batch_.B; ++b)
    for (int64_t s = 1; s < batch_.S; ++s)
      if (out[b * batch_.S + s - 1] != 0) out[b * batch_.S + s] = 1;
  return out;
}

const Exposure::Rows& Exposure::rows_of(const TapName& tap) const {
  if (!tap.layer) return tap.info.name == "embed" ? layers_.front().input : output_;
  const Layer& layer = layers_[*tap.layer];
  const std::string_view name = tap.info.name;
  if (is_any_of(name, {"attn_norm", "q_latent", "kv_latent", "q_nope", "q_rope", "k_rope", "ix.q",
                       "ix.k", "ix.weights"}))
    return layer.input;
  if (name == "ix.scores") return layer.seen;
  if (is_any_of(name, {"router.experts", "router.weights", "moe.routed", "mlp.out", "hidden"}))
    return layer.routed;
  return layer.selected;
}

bool Exposure::touches(const TapName& tap) const {
  return sums_over_rows(tap) ? any_ : holds_any(rows_of(tap));
}

Batch Exposure::without_exposed(const TapName& tap) const {
  Batch out = batch_;
  const Rows& exposed = rows_of(tap);
  for (size_t i = 0; i < exposed.size(); ++i)
    if (exposed[i] != 0) out.attention_mask[i] = 0;
  return out;
}

Exposure::Share Exposure::share(const TapName& tap) const {
  Share share;
  const Rows& exposed = rows_of(tap);
  for (size_t i = 0; i < exposed.size(); ++i) {
    if (batch_.attention_mask[i] == 0) continue;
    ++share.rows;
    share.exposed += exposed[i];
  }
  return share;
}

}  // namespace dsv32::harness
