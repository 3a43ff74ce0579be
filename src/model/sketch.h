#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "src/model/tensor.h"
#include "src/model/trace.h"

namespace dsv32 {

inline constexpr int kProjections = 8;

/// The signs of a row's elements for a tap. That of element `i` in projection `p` (0..7) is bit p
/// of byte (i mod 32) of block 1 + i / 32 of the Philox stream (seed 0, "sketch." + tap name),
/// bytes low first in each 64-bit word: bit 1 is +1, bit 0 is -1. Returns one byte per element of a
/// row: bit p of byte i.
std::vector<uint8_t> sketch_signs(const std::string& tap, int64_t row_size);

/// Computes the 8 projections of one row, accumulated in double.
void project(std::span<const double> row, std::span<const uint8_t> signs, std::span<double> out);

inline constexpr int kParameterProjections = 16;

/// What a training golden keeps of a parameter after a step: L2 norm and 16 seeded projections,
/// summed in double. Sign of element `i` in projection `p`: bit p mod 8 of byte 2 * i + p / 8 of
/// the bytes of sketch_signs("param." + name); 1 is +1, 0 is -1. docs/formats.md 10.
struct ParameterSketch {
  double norm = 0;
  std::array<double, kParameterProjections> projections = {};
};
/// Sketches a parameter. `codes`: parameter_codes of the name, one per value.
ParameterSketch sketch_parameter(std::span<const float> values, std::span<const uint16_t> codes);
ParameterSketch sketch_parameter(std::span<const double> values, std::span<const uint16_t> codes);
/// The 16 sign bits of every element: bit p for projection p.
std::vector<uint16_t> parameter_codes(const std::string& name, int64_t size);

/// A forward tap seen as B*S rows: token taps as they are; attention taps [B,H,S,T] as rows (b,s)
/// of H*T values in (h,t) order; a gradient as one row. -inf counts as 0, attn.logits off the
/// support (probability 0) as 0.
struct SketchRows {
  int64_t count = 0;
  int64_t size = 0;
};
SketchRows sketch_rows(const TapName& tap, const Shape& shape);

/// Rows b * S + s that a sketch keeps whole: the first beyond top-k, the last of batch row 0, one
/// in the middle, the last of batch row B-1. Ascending.
std::vector<int64_t> chosen_rows(int64_t B, int64_t S, int64_t index_topk);
/// The sketch of a tap that is there whole, its projections summed in double. `index`: the rows
/// that are kept, of a gradient the index of the first dimension.
TapSketch sketch_tap(const TapName& tap, const HostTensor& value,
                     const std::vector<int64_t>& index);
/// A token or key tap with the rows of its sketch in place and zeros elsewhere. float32.
HostTensor tensor_of_rows(const TapSketch& sketch);

}  // namespace dsv32
