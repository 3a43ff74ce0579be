#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "src/model/tensor.h"
#include "src/model/trace.h"

namespace dsv32 {

inline constexpr int kProjections = 8;

/// Sign of element `i` in projection `p` (0..7) for a tap: bit p of byte (i mod 32) of block 1 + i
/// / 32 of the Philox stream (seed 0, "sketch." + tap name), bytes low first in each 64-bit word:
/// bit 1 is +1, bit 0 is -1. Returns one byte per element of a row: bit p of byte i.
std::vector<uint8_t> sketch_signs(const std::string& tap, int64_t row_size);

/// The 8 projections of one row, accumulated in double.
void project(std::span<const double> row, std::span<const uint8_t> signs, std::span<double> out);

/// A forward tap seen as B*S rows: token taps as they are; attention taps [B,H,S,T] as rows (b,s)
/// of H*T values in (h,t) order; a gradient as one row. -inf counts as 0, attn.logits off the
/// support (probability 0) as 0.
struct SketchRows {
  int64_t count = 0;
  int64_t size = 0;
};
SketchRows sketch_rows(const TapName& tap, const Shape& shape);

}  // namespace dsv32
