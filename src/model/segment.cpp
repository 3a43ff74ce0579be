#include "src/model/segment.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "src/model/at_once.h"
#include "src/model/trace.h"

namespace dsv32 {
namespace {

/// Elements of an attention matrix [B,H,S,S] that may be whole; beyond it rows go block by block,
/// and few of them are kept. A number of its own, so that no digit depends on a machine's memory.
constexpr int64_t kWholeAttention = int64_t{1} << 25;
constexpr int64_t kWholeLogits = int64_t{1} << 26;  // elements of [B,S,vocab], likewise
constexpr int64_t kKeptQueries = 64;

bool is_mlp_tap(std::string_view name) {
  return name == "ffn_norm" || name.starts_with("router.") || name.starts_with("moe.") ||
         name == "mlp.out" || name == "hidden";
}

bool makes(const Segment& segment, const TapName& tap) {
  const std::string_view name = tap.info.name;
  switch (segment.kind) {
    case SegmentKind::embed:
      return name == "embed";
    case SegmentKind::attention:
      return tap.layer == segment.layer && !is_mlp_tap(name);
    case SegmentKind::mlp:
      return tap.layer == segment.layer && is_mlp_tap(name);
    case SegmentKind::head:
      break;
  }
  return !tap.layer && name != "embed";
}

bool reads(const Segment& segment, const std::string& weight) {
  const bool of_mlp = weight.find(".mlp.") != std::string::npos ||
                      weight.find(".post_attention_layernorm.") != std::string::npos;
  switch (segment.kind) {
    case SegmentKind::embed:
      return weight == "model.embed_tokens.weight";
    case SegmentKind::attention:
      return !of_mlp;
    case SegmentKind::mlp:
      return of_mlp;
    case SegmentKind::head:
      break;
  }
  return weight == "model.norm.weight" || weight == "lm_head.weight";
}

int64_t attention_elements(const ModelConfig& config, int64_t B, int64_t S) {
  return numel({B, config.num_attention_heads, S, S});
}

}  // namespace

std::string to_string(const Segment& segment) {
  switch (segment.kind) {
    case SegmentKind::embed:
      return "embed";
    case SegmentKind::attention:
      return "layer " + std::to_string(segment.layer) + " attention";
    case SegmentKind::mlp:
      return "layer " + std::to_string(segment.layer) + " mlp";
    case SegmentKind::head:
      break;
  }
  return "head";
}

std::vector<std::string> segment_taps(const ModelConfig& config, const Segment& segment) {
  std::vector<std::string> names = forward_taps(config);
  std::erase_if(names, [&](const std::string& name) { return !makes(segment, *parse_tap(name)); });
  return names;
}

std::vector<WeightSpec> segment_specs(const ModelConfig& config, const Segment& segment) {
  const bool of_layer = segment.layer >= 0;
  std::vector<WeightSpec> specs;
  if (of_layer) {
    specs = layer_weight_specs(config, segment.layer);
  } else {
    ModelConfig without_layers = config;
    without_layers.num_hidden_layers = 0;
    specs = weight_specs(without_layers);
  }
  std::erase_if(specs, [&](const WeightSpec& spec) { return !reads(segment, spec.name); });
  return specs;
}

std::vector<ExpertRange> expert_ranges(const ModelConfig& config) {
  constexpr int64_t kWholeExperts = int64_t{1} << 26, kMatrices = 3, kAtOnce = 8;
  const int64_t count = config.n_routed_experts;
  const bool whole =
      numel({count, kMatrices, config.hidden_size, config.moe_intermediate_size}) <= kWholeExperts;
  const int64_t step = whole ? count : kAtOnce;
  std::vector<ExpertRange> ranges;
  for (int64_t first = 0; first < count; first += step)
    ranges.push_back({first, std::min(first + step, count)});
  return ranges;
}

std::vector<std::string> segment_gradients(const ModelConfig& config, const Segment& segment,
                                           const std::optional<ExpertRange>& experts) {
  const std::string prefix = "grad.", routed = ".mlp.experts.";
  std::vector<std::string> names = layer_gradient_taps(config, segment.layer);
  std::erase_if(names, [&](const std::string& name) {
    if (!reads(segment, name.substr(prefix.size()))) return true;
    const size_t at = name.find(routed);
    if (at == std::string::npos) return experts.has_value();
    const int64_t expert = std::stoll(name.substr(at + routed.size()));
    return !experts || expert < experts->first || expert >= experts->last;
  });
  return names;
}

std::vector<int64_t> spread_queries(int64_t kept, int64_t S) {
  std::vector<int64_t> queries(kept);
  for (int64_t i = 0; i < kept; ++i) queries[i] = kept > 1 ? i * (S - 1) / (kept - 1) : 0;
  return queries;
}

std::vector<int64_t> kept_queries(const ModelConfig& config, int64_t B, int64_t S) {
  const bool whole = S <= kKeptQueries || attention_elements(config, B, S) <= kWholeAttention;
  return spread_queries(whole ? S : kKeptQueries, S);
}

std::vector<int64_t> kept_logit_rows(const ModelConfig& config, int64_t B, int64_t S) {
  const bool whole = S <= kKeptQueries || numel({B, S, config.vocab_size}) <= kWholeLogits;
  return spread_queries(whole ? S : kKeptQueries, S);
}

int64_t queries_at_once(const ModelConfig& config, int64_t B, int64_t S) {
  const int64_t fit = kWholeAttention / std::max<int64_t>(attention_elements(config, B, S) / S, 1);
  return std::clamp<int64_t>(fit, 1, S);
}

HostTensor synthetic_hidden(uint64_t seed, int64_t layer, const Shape& shape) {
  constexpr int kExponent = -3;
  return bell_stream(seed, "hidden." + std::to_string(layer), shape, kExponent);
}

HostTensor synthetic_gradient(uint64_t seed, int64_t layer, const Batch& batch, int64_t width) {
  constexpr int kExponent = -9;
  HostTensor values =
      bell_stream(seed, "dhidden." + std::to_string(layer), {batch.B, batch.S, width}, kExponent);
  const std::span<float> data = values.data<float>();
  for (int64_t row = 0; row < batch.B * batch.S; ++row)
    if (!batch.valid(row / batch.S, row % batch.S)) std::fill_n(&data[row * width], width, 0.0F);
  return values;
}

HostTensor gather_rows(const WeightSource& source, const WeightSpec& spec,
                       const std::vector<int64_t>& ids) {
  if (ids.empty()) return {};
  const HostTensor first = source.load_rows(spec, ids[0], ids[0] + 1);
  HostTensor rows(first.dtype(), {static_cast<int64_t>(ids.size()), row_size(spec)});
  const auto gather = [&](size_t i) {
    const HostTensor row = source.load_rows(spec, ids[i], ids[i] + 1);
    std::copy_n(row.raw(), row.bytes(), rows.raw() + static_cast<int64_t>(i) * row.bytes());
  };
  // Several at a time: each row is a round trip where the weights are on a slow volume.
  constexpr size_t kFew = 64;
  at_once(ids.size(), gather, ids.size() < kFew ? 1 : kVolumeThreads);
  return rows;
}

}  // namespace dsv32
