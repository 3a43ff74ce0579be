#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/model/case.h"
#include "src/model/config.h"
#include "src/model/fp8.h"
#include "src/model/tensor.h"

namespace dsv32 {

/// Name and shape of one tensor of the unfused Hugging Face checkpoint.
struct WeightSpec {
  std::string name;  // "model.layers.3.mlp.experts.5.gate_proj.weight"
  Shape shape;
};

/// Every tensor of the model in paper order: embedding, layers, final norm, head.
std::vector<WeightSpec> weight_specs(const ModelConfig& config);
/// Every tensor of one layer, in paper order.
std::vector<WeightSpec> layer_weight_specs(const ModelConfig& config, int64_t layer);
/// The shape of one tensor by name; nullopt for a name that the model does not have.
std::optional<Shape> weight_shape(const ModelConfig& config, const std::string& name);
/// The layer in a weight's name: 3 for "model.layers.3.mlp.gate.weight"; nullopt outside the
/// layers. It reads names of LoRA tensors too.
std::optional<int64_t> weight_layer(std::string_view name);
/// True for e_score_correction_bias: a buffer has no gradient and is never trained.
bool is_buffer(const std::string& weight_name);
bool is_indexer(const std::string& weight_name);

/// Elements of one row of the first axis.
int64_t row_size(const WeightSpec& spec);
/// Shape of rows [begin, end) of the first axis; throws Error (internal) for rows that are not
/// there.
Shape shape_of_rows(const WeightSpec& spec, int64_t begin, int64_t end);

/// float32, element bell * 2^exponent of a stream of the seed. docs/formats.md 1.
HostTensor bell_stream(uint64_t seed, const std::string& name, const Shape& shape, int exponent);

/// Where weights come from. Tensors are loaded one by one: nothing may assume a resident model.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// Loads one tensor by its unfused checkpoint name, with the shape of `weight_specs`. Safe to
  /// call from several threads.
  virtual HostTensor load(const WeightSpec& spec) const = 0;
  /// Rows [begin, end) of its first axis: the bits and the dtype of `load`. Throws Error (internal)
  /// for rows that it does not have. Here: out of the whole tensor.
  virtual HostTensor load_rows(const WeightSpec& spec, int64_t begin, int64_t end) const;
  /// The codes and scales that `load` multiplies; nullopt for a tensor that is not kept in FP8.
  virtual std::optional<Fp8Matrix> load_fp8(const WeightSpec&) const { return std::nullopt; }
  /// Says that a pass over the weights `now` begins, in about this order, and that one over `then`
  /// will follow: a source that reads from a volume may read ahead. Changes no value.
  virtual void expect(const std::vector<WeightSpec>& /*now*/,
                      const std::vector<WeightSpec>& /*then*/) const {}
  /// How its FP8 tensors are quantised; nullopt where it has none.
  virtual std::optional<Fp8Config> fp8() const { return std::nullopt; }
  /// Says what a trace's metadata say: `synthetic:SEED`, `synthetic-fp8:SEED` or `sha256:...`.
  virtual std::string identity() const = 0;
  /// What is there and plays no part, for people; empty: nothing.
  virtual std::vector<std::string> notes() const { return {}; }
};

/// The weights of docs/formats.md 1: each element is a function of (seed, name, index) only.
/// Tensors are returned as float32 (every value is exact in bfloat16). With `fp8` linear layers are
/// those of docs/formats.md 7: spread over blocks, quantised and dequantised again.
class SyntheticWeights : public WeightSource {
 public:
  explicit SyntheticWeights(uint64_t seed, double bias_offset = 0,
                            std::vector<WeightEdit> edits = {}, std::optional<Fp8Config> fp8 = {});
  /// The weights of a case, its edits done. load() throws Error (artefact) where a result is not
  /// exact in bfloat16.
  explicit SyntheticWeights(const Case& c);
  HostTensor load(const WeightSpec& spec) const override;
  HostTensor load_rows(const WeightSpec& spec, int64_t begin, int64_t end) const override;
  std::optional<Fp8Matrix> load_fp8(const WeightSpec& spec) const override;
  std::optional<Fp8Config> fp8() const override { return fp8_; }
  std::string identity() const override;

 private:
  bool is_quantized(const WeightSpec& spec) const { return fp8_ && is_fp8_weight(spec.name); }
  HostTensor plain_rows(const WeightSpec& spec, int64_t begin, int64_t end) const;
  Fp8Matrix quantized_rows(const WeightSpec& spec, int64_t begin, int64_t end) const;

  uint64_t seed_;
  double bias_offset_;
  std::vector<WeightEdit> edits_;
  std::optional<Fp8Config> fp8_;
};

/// The edit speaks of this weight.
bool names_weight(const WeightEdit& edit, std::string_view name);

}  // namespace dsv32
