#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/model/config.h"
#include "src/model/tensor.h"

namespace dsv32 {

/// One adapted map: W + alpha / rank * B A. Tensor names are those of docs/formats.md 1, shapes
/// those that peft saves. The experts of one layer share a pair: expert e has rows [e rank, (e + 1)
/// rank) of A and columns e, e + experts, e + 2 experts, ... of B.
struct LoraModule {
  std::string name;  // "model.layers.0.self_attn.q_a_proj", "model.layers.3.mlp.experts.down_proj"
  int64_t in = 0, out = 0;  // of one expert's map; gate_up_proj: out = 2 * moe_intermediate_size
  int64_t experts = 1;      // 1: a linear layer
  int64_t rank = 8;
  double alpha = 16;

  double scale() const { return alpha / static_cast<double>(rank); }
  std::string a_name() const { return name + ".lora_A.weight"; }
  std::string b_name() const { return name + ".lora_B.weight"; }
  Shape a_shape() const { return {experts * rank, in}; }
  Shape b_shape() const { return {out, experts * rank}; }
  /// True when the indexer's KL drives it; every other adapter is driven by the LM loss
  /// (docs/spec.md 2).
  bool is_kl() const;
  /// True for a fused tensor of routed experts: for peft a target parameter, no target module.
  bool is_fused() const;
};

/// Which modules carry adapters.
struct LoraTargets {
  bool lm = true;        // q_a, q_b, kv_a, kv_b, o; gate, up, down of dense and shared MLPs
  bool kl = true;        // indexer wq_b, wk, weights_proj
  bool experts = false;  // the routed experts' fused tensors
  int64_t rank = 8;
  double alpha = 16;
};

/// The adapted modules in the order of weight_specs.
std::vector<LoraModule> lora_modules(const ModelConfig& config, const LoraTargets& targets = {});

/// Where a checkpoint weight lies in the map of a module that could carry an adapter.
struct LoraPlace {
  std::string module;
  int64_t expert = 0;
  int64_t first_row = 0;  // of the map's outputs: up_proj follows gate_proj in gate_up_proj
};
/// Finds the place of a weight; nullopt for one that no adapter touches.
std::optional<LoraPlace> lora_place(const ModelConfig& config, const std::string& weight_name);

/// The shape of what a training moves: a weight's, or an adapter factor's of the default rank;
/// nullopt for a name that is neither.
std::optional<Shape> trained_shape(const ModelConfig& config, const std::string& name);

}  // namespace dsv32
