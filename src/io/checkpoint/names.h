#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

/// Names in checkpoints: those of Hugging Face and those of the official inference demo
/// (docs/spec.md 5).
namespace dsv32::io {

/// What an FP8 tensor's scales are called: its name and this.
inline constexpr std::string_view kScaleSuffix = "_scale_inv";

/// "layers.3.ffn.w2.scale" -> "model.layers.3.mlp.down_proj.weight_scale_inv"; nullopt for a name
/// that is not in the demo's style.
std::optional<std::string> released_name(const std::string& demo);
/// The way back.
std::string demo_name(const std::string& released);

/// How the demo's shards, one per rank, share a tensor.
enum class RankSplit { none, rows, columns, expert };
/// Of a weight by its released name. `none`: every rank has all of it; `expert`: one rank has it.
RankSplit rank_split(const std::string& released);

/// "model.layers.3.mlp.experts.5.gate_proj.weight" in its three parts.
struct ExpertName {
  std::string experts;  // "model.layers.3.mlp.experts."
  int64_t expert;
  std::string part;  // "gate_proj"
};
std::optional<ExpertName> parse_expert(const std::string& name);

}  // namespace dsv32::io
