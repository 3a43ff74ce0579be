#include "src/model/weights.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <span>
#include <utility>

#include "src/model/at_once.h"
#include "src/model/errors.h"
#include "src/model/philox.h"

namespace dsv32 {

namespace {

constexpr int64_t kValuesPerBlock = 16;
constexpr int64_t kValuesOfATask = 1 << 20;  // of fewer, a thread costs more than it saves

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
[[gnu::always_inline]] inline uint64_t nibble_sums(uint64_t word) {
  constexpr uint64_t kNibbles = 0x0f0f0f0f0f0f0f0f;
  constexpr uint64_t kBytes = 0x00ff00ff00ff00ff;
  const uint64_t pairs = (word & kNibbles) + ((word >> 4) & kNibbles);
  return (pairs & kBytes) + ((pairs >> 8) & kBytes);
}

// Counter blocks that are made at a time: they stay in the first cache.
constexpr int64_t kBlocksAtOnce = 128;
using Words = std::array<uint64_t, kBlocksAtOnce * 4>;
using Lanes = std::array<uint16_t, kBlocksAtOnce * kValuesPerBlock>;

// The values of the lanes [first, first + count). A lane's sum and its product with a power of two
// are exact, and one rounding is left: every machine gives the same bits.
__attribute__((target_clones("avx512f", "avx2", "default"))) void make_values(
    Words& words, int64_t first, int64_t count, Affine affine, float* out) {
  static_assert(std::endian::native == std::endian::little, "lanes are counted from the low bits");
  constexpr int kBellCentre = 30;
  for (uint64_t& word : words) word = nibble_sums(word);
  const auto lanes = std::bit_cast<Lanes>(words);
  for (int64_t i = 0; i < count; ++i) {
    const int bell = static_cast<int>(lanes[first + i]) - kBellCentre;
    out[i] = affine.offset + affine.scale * static_cast<float>(bell);
  }
}

// Values of one tensor.
struct Stream {
  std::array<uint64_t, 2> key;
  Affine affine;
};

// Values [begin, end) of the stream.
void fill(const Stream& stream, int64_t begin, int64_t end, float* values) {
  Words words = {};
  for (int64_t i = begin; i < end;) {
    const int64_t block = i / kValuesPerBlock, first = i % kValuesPerBlock;
    const int64_t needed = (end + kValuesPerBlock - 1) / kValuesPerBlock - block;
    const int64_t blocks = std::min(needed, kBlocksAtOnce);
    const int64_t count = std::min(blocks * kValuesPerBlock - first, end - i);
    philox4x64_blocks(stream.key, 1 + static_cast<uint64_t>(block), blocks, words.data());
    make_values(words, first, count, stream.affine, values + (i - begin));
    i += count;
  }
}

void fill_in_threads(const Stream& stream, int64_t begin, int64_t end, float* values) {
  const int64_t tasks = (end - begin + kValuesOfATask - 1) / kValuesOfATask;
  at_once(static_cast<size_t>(tasks), [&](size_t task) {
    const int64_t first = begin + static_cast<int64_t>(task) * kValuesOfATask;
    fill(stream, first, std::min(end, first + kValuesOfATask), values + (first - begin));
  });
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

/// On a part of the tensor, whose elements start with element `first`: what lies outside of it is
/// left alone.
void apply(const WeightEdit& edit, const WeightSpec& spec, int64_t first, std::span<float> values) {
  const int64_t row = row_size(spec), width = spec.shape.back();
  const int64_t column = edit.column.value_or(0);
  const int64_t begin =
      edit.row ? *edit.row * row - first : (column - first % width + width) % width;
  const int64_t step = edit.row ? 1 : width;
  const auto size = static_cast<int64_t>(values.size());
  const int64_t end = edit.row ? std::min(begin + row, size) : size;
  if (!edit.row && column >= width) return;
  for (int64_t i = std::max<int64_t>(begin, 0); i < end; i += step) {
    const auto at = static_cast<size_t>(i);
    values[at] = edited(edit, spec.name, values[at]);
  }
}

/// Neighbouring blocks differ along both axes: times 2^(((3 r + 2 c) mod 5) - 3) in block (r, c).
/// docs/formats.md 7.
void spread_over_blocks(const Fp8Config& format, int64_t first_row, int64_t width,
                        std::span<float> values) {
  constexpr int64_t kDown = 3, kAcross = 2, kFactors = 5, kCentre = 3;
  const auto size = static_cast<int64_t>(values.size());
  for (int64_t start = 0; start < size; start += width) {
    const int64_t r = (first_row + start / width) / format.block_rows;
    for (int64_t begin = 0; begin < width; begin += format.block_columns) {
      const int64_t c = begin / format.block_columns;
      const float factor =
          std::ldexp(1.0F, static_cast<int>((kDown * r + kAcross * c) % kFactors - kCentre));
      const int64_t end = std::min(begin + format.block_columns, width);
      for (int64_t i = start + begin; i < start + end; ++i) values[i] *= factor;
    }
  }
}

}  // namespace

int64_t row_size(const WeightSpec& spec) {
  return numel(Shape(spec.shape.begin() + 1, spec.shape.end()));
}

Shape shape_of_rows(const WeightSpec& spec, int64_t begin, int64_t end) {
  if (spec.shape.empty() || begin < 0 || begin > end || end > spec.shape[0]) {
    throw Error(ExitCode::internal, {.where = spec.name,
                                     .what = "rows",
                                     .expected = "a part of " + to_string(spec.shape),
                                     .got = std::to_string(begin) + " to " + std::to_string(end)});
  }
  Shape shape = spec.shape;
  shape[0] = end - begin;
  return shape;
}

HostTensor WeightSource::load_rows(const WeightSpec& spec, int64_t begin, int64_t end) const {
  const Shape shape = shape_of_rows(spec, begin, end);
  const HostTensor whole = load(spec);
  HostTensor rows(whole.dtype(), shape);
  const int64_t row_bytes = row_size(spec) * item_size(whole.dtype());
  std::copy_n(whole.raw() + begin * row_bytes, rows.bytes(), rows.raw());
  return rows;
}

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

SyntheticWeights::SyntheticWeights(uint64_t seed, double bias_offset, std::vector<WeightEdit> edits,
                                   std::optional<Fp8Config> fp8)
    : seed_(seed), bias_offset_(bias_offset), edits_(std::move(edits)), fp8_(std::move(fp8)) {}

SyntheticWeights::SyntheticWeights(const Case& c)
    : SyntheticWeights(c.seed, c.bias_offset, c.edits, c.fp8 ? c.config.fp8 : std::nullopt) {}

HostTensor SyntheticWeights::load(const WeightSpec& spec) const {
  if (spec.shape.empty()) {
    throw Error(ExitCode::internal, {.where = spec.name,
                                     .what = "synthetic weight",
                                     .expected = "one dimension or more",
                                     .got = to_string(spec.shape)});
  }
  return load_rows(spec, 0, spec.shape[0]);
}

HostTensor SyntheticWeights::load_rows(const WeightSpec& spec, int64_t begin, int64_t end) const {
  if (!is_quantized(spec)) return plain_rows(spec, begin, end);
  const Shape shape = shape_of_rows(spec, begin, end);
  // A scale is that of its whole block.
  const int64_t block = fp8_->block_rows, first = begin / block * block;
  const int64_t last = std::min((end + block - 1) / block * block, spec.shape[0]);
  const HostTensor whole = dequantized(quantized_rows(spec, first, last));
  HostTensor rows(DType::float32, shape);
  const auto skipped = static_cast<size_t>((begin - first) * spec.shape[1]);
  const auto values = whole.data<float>().subspan(skipped, static_cast<size_t>(rows.numel()));
  std::copy(values.begin(), values.end(), rows.data<float>().begin());
  return rows;
}

/// `begin` is the first row of a block.
Fp8Matrix SyntheticWeights::quantized_rows(const WeightSpec& spec, int64_t begin,
                                           int64_t end) const {
  HostTensor values = plain_rows(spec, begin, end);
  spread_over_blocks(*fp8_, begin, spec.shape[1], values.data<float>());
  return quantized(values, *fp8_);
}

std::optional<Fp8Matrix> SyntheticWeights::load_fp8(const WeightSpec& spec) const {
  if (!is_quantized(spec)) return std::nullopt;
  return quantized_rows(spec, 0, spec.shape[0]);
}

HostTensor SyntheticWeights::plain_rows(const WeightSpec& spec, int64_t begin, int64_t end) const {
  HostTensor rows(DType::float32, shape_of_rows(spec, begin, end));
  const Stream stream{{seed_, fnv1a64(spec.name)}, affine_of(spec, bias_offset_)};
  const int64_t first = begin * row_size(spec), last = end * row_size(spec);
  float* values = rows.data<float>().data();
  fill_in_threads(stream, first, last, values);
  for (const WeightEdit& edit : edits_)
    if (names_weight(edit, spec.name)) apply(edit, spec, first, rows.data<float>());
  return rows;
}

std::string SyntheticWeights::identity() const {
  return (fp8_ ? "synthetic-fp8:" : "synthetic:") + std::to_string(seed_);
}

HostTensor bell_stream(uint64_t seed, const std::string& name, const Shape& shape, int exponent) {
  HostTensor values(DType::float32, shape);
  const Stream stream{{seed, fnv1a64(name)}, {std::ldexp(1.0F, exponent), 0}};
  fill_in_threads(stream, 0, values.numel(), values.data<float>().data());
  return values;
}

}  // namespace dsv32
