#include "src/model/weights.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <span>
#include <thread>
#include <utility>

#include "src/model/errors.h"
#include "src/model/philox.h"
#include "src/model/philox_block.h"

namespace dsv32 {

namespace {

constexpr int64_t kValuesPerBlock = 16;
constexpr int64_t kThreadedFrom = int64_t{1}
                                  << 22;  // values; below it a thread costs more than it saves

enum class Law { absolute, one, fan };

struct Rule {
  std::string_view ending;
  Law law;
  int g;
};

// docs/formats.md 1; the first match wins, the last row matches all.
constexpr std::array<Rule, 17> kRules = {{
    {"embed_tokens.weight", Law::absolute, -4},
    {"input_layernorm.weight", Law::one, -6},
    {"post_attention_layernorm.weight", Law::one, -6},
    {"q_a_layernorm.weight", Law::one, -6},
    {"kv_a_layernorm.weight", Law::one, -6},
    {"model.norm.weight", Law::one, -6},
    {"indexer.k_norm.weight", Law::one, -6},
    {"indexer.k_norm.bias", Law::absolute, -6},
    {"e_score_correction_bias", Law::absolute, -6},
    {"indexer.wk.weight", Law::fan, -4},
    {"q_b_proj.weight", Law::fan, 2},
    {"indexer.wq_b.weight", Law::fan, 1},
    {"lm_head.weight", Law::fan, 1},
    {"mlp.gate.weight", Law::fan, 1},
    {"lora_A.weight", Law::fan, 0},
    {"lora_B.weight", Law::absolute, -10},
    {"", Law::fan, 0},
}};

const Rule& rule_of(std::string_view name) {
  return *std::find_if(kRules.begin(), kRules.end(),
                       [name](const Rule& rule) { return name.ends_with(rule.ending); });
}

// Smallest k with 4^k >= 85 * fan_in; 85 is the variance of a bell.
int fan_exponent(int64_t fan_in) {
  int k = 0;
  while (std::ldexp(1.0, 2 * k) < 85.0 * static_cast<double>(fan_in)) ++k;
  return k;
}

// value = offset + scale * bell
struct Affine {
  float scale;
  float offset;
};

Affine affine_of(const WeightSpec& spec, double bias_offset) {
  const Rule& rule = rule_of(spec.name);
  const int k = rule.law == Law::fan ? fan_exponent(spec.shape.back()) : 0;
  double offset = rule.law == Law::one ? 1.0 : 0.0;
  if (is_buffer(spec.name)) offset += bias_offset;
  return {std::ldexp(1.0F, rule.g - k), static_cast<float>(offset)};
}

// Sums of the four nibbles of each 16-bit lane, in the lanes.
uint64_t nibble_sums(uint64_t word) {
  constexpr uint64_t kNibbles = 0x0f0f0f0f0f0f0f0f;
  constexpr uint64_t kBytes = 0x00ff00ff00ff00ff;
  const uint64_t pairs = (word & kNibbles) + ((word >> 4) & kNibbles);
  return (pairs & kBytes) + ((pairs >> 8) & kBytes);
}

// One counter block: 16 values. The lanes go through memory so that the compiler makes vectors of
// them.
void fill_block(const std::array<uint64_t, 4>& words, Affine affine, float* out) {
  static_assert(std::endian::native == std::endian::little, "lanes are counted from the low bits");
  constexpr int kBellCentre = 30;
  std::array<uint64_t, 4> sums;
  for (size_t word = 0; word < words.size(); ++word) sums[word] = nibble_sums(words[word]);
  const auto lanes = std::bit_cast<std::array<uint16_t, kValuesPerBlock>>(sums);
  for (int i = 0; i < kValuesPerBlock; ++i) {
    const int bell = static_cast<int>(lanes[i]) - kBellCentre;
    out[i] = affine.offset + affine.scale * static_cast<float>(bell);
  }
}

// Values [begin, end); begin is a multiple of 16.
void fill(std::array<uint64_t, 2> key, Affine affine, int64_t begin, int64_t end, float* values) {
  int64_t i = begin;
  for (; i + kValuesPerBlock <= end; i += kValuesPerBlock) {
    const auto block = static_cast<uint64_t>(1 + i / kValuesPerBlock);
    fill_block(philox4x64_block({block, 0, 0, 0}, key), affine, values + i);
  }
  if (i == end) return;
  std::array<float, kValuesPerBlock> last;
  const auto block = static_cast<uint64_t>(1 + i / kValuesPerBlock);
  fill_block(philox4x64_block({block, 0, 0, 0}, key), affine, last.data());
  std::copy_n(last.begin(), end - i, values + i);
}

void fill_in_threads(std::array<uint64_t, 2> key, Affine affine, int64_t count, float* values) {
  const int64_t threads = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t blocks = (count + kValuesPerBlock - 1) / kValuesPerBlock;
  const int64_t step = (blocks + threads - 1) / threads * kValuesPerBlock;
  std::vector<std::jthread> pool;
  for (int64_t begin = 0; begin < count; begin += step) {
    pool.emplace_back(fill, key, affine, begin, std::min(count, begin + step), values);
  }
}

float edited(const WeightEdit& edit, const std::string& name, float value) {
  const double exact = static_cast<double>(value) * edit.scale + edit.add;
  const auto out = static_cast<float>(exact);
  constexpr uint32_t kBelowBfloat16 = 0xFFFF;
  const bool kept = static_cast<double>(out) == exact &&
                    (std::bit_cast<uint32_t>(out) & kBelowBfloat16) == 0 && std::isfinite(out);
  if (kept) return out;
  throw Error(ExitCode::artefact, {.where = "case.edits",
                                   .what = name,
                                   .expected = "values that are exact in bfloat16",
                                   .got = std::to_string(exact)});
}

/// A part of the tensor may be at hand, its first rows: an index beyond it changes nothing.
void apply(const WeightEdit& edit, const WeightSpec& spec, std::span<float> values) {
  const bool row = edit.row.has_value();
  const int64_t count = row ? spec.shape.front() : spec.shape.back();
  const int64_t index = row ? *edit.row : edit.column.value_or(0);
  if (index >= count) return;
  const auto size = static_cast<int64_t>(values.size()) / count;  // values to change
  for (int64_t i = 0; i < size; ++i) {
    float& value = values[row ? index * size + i : i * count + index];
    value = edited(edit, spec.name, value);
  }
}

}  // namespace

bool names_weight(const WeightEdit& edit, std::string_view name) {
  for (const char expected : edit.name) {
    if (expected != '*') {
      if (name.empty() || name.front() != expected) return false;
      name.remove_prefix(1);
      continue;
    }
    const size_t digits = std::min(name.find_first_not_of("0123456789"), name.size());
    if (digits == 0) return false;
    name.remove_prefix(digits);
  }
  return name.empty();
}

SyntheticWeights::SyntheticWeights(uint64_t seed, double bias_offset, std::vector<WeightEdit> edits)
    : seed_(seed), bias_offset_(bias_offset), edits_(std::move(edits)) {}

SyntheticWeights::SyntheticWeights(const Case& c)
    : SyntheticWeights(c.seed, c.bias_offset, c.edits) {}

HostTensor SyntheticWeights::load(const WeightSpec& spec) const {
  if (spec.shape.empty()) {
    throw Error(ExitCode::internal, {.where = spec.name,
                                     .what = "synthetic weight",
                                     .expected = "one dimension or more",
                                     .got = to_string(spec.shape)});
  }
  HostTensor tensor(DType::float32, spec.shape);
  const Affine affine = affine_of(spec, bias_offset_);
  const std::array<uint64_t, 2> key = {seed_, fnv1a64(spec.name)};
  float* values = tensor.data<float>().data();
  if (tensor.numel() < kThreadedFrom) {
    fill(key, affine, 0, tensor.numel(), values);
  } else {
    fill_in_threads(key, affine, tensor.numel(), values);
  }
  for (const WeightEdit& edit : edits_)
    if (names_weight(edit, spec.name)) apply(edit, spec, tensor.data<float>());
  return tensor;
}

std::string SyntheticWeights::identity() const { return "synthetic:" + std::to_string(seed_); }

}  // namespace dsv32
