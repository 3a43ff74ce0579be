#include "src/model/sketch.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>

#include "src/model/errors.h"
#include "src/model/philox.h"
#include "src/model/philox_block.h"

namespace dsv32 {

namespace {

using Signs = std::array<double, kProjections>;

// Signs of the 8 projections for each value of a byte.
std::array<Signs, 256> make_sign_table() {
  std::array<Signs, 256> table;
  for (size_t byte = 0; byte < table.size(); ++byte) {
    for (int p = 0; p < kProjections; ++p) table[byte][p] = (byte >> p) & 1 ? 1.0 : -1.0;
  }
  return table;
}

// Sums by low and by high byte of the codes first: 2 additions per value instead of 16.
template <typename T>
ParameterSketch sketch_values(std::span<const T> values, std::span<const uint16_t> codes) {
  if (values.size() != codes.size()) {
    throw Error(ExitCode::internal, {.where = "parameter sketch",
                                     .what = "value and code counts",
                                     .expected = std::to_string(codes.size()),
                                     .got = std::to_string(values.size())});
  }
  static const std::array<Signs, 256> table = make_sign_table();
  std::array<std::array<double, 256>, 2> sums = {};  // [byte of the code][its value]
  double squares = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double value = values[i];
    squares += value * value;
    sums[0][codes[i] & 0xFF] += value;
    sums[1][codes[i] >> 8] += value;
  }
  ParameterSketch sketch{.norm = std::sqrt(squares)};
  for (int p = 0; p < kParameterProjections; ++p) {
    for (size_t byte = 0; byte < table.size(); ++byte) {
      sketch.projections[p] += table[byte][p % kProjections] * sums[p / kProjections][byte];
    }
  }
  return sketch;
}

}  // namespace

std::vector<uint16_t> parameter_codes(const std::string& name, int64_t size) {
  const std::vector<uint8_t> bytes = sketch_signs("param." + name, 2 * size);
  std::vector<uint16_t> codes(static_cast<size_t>(size));
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<uint16_t>(bytes[2 * i] | bytes[2 * i + 1] << 8);
  }
  return codes;
}

ParameterSketch sketch_parameter(std::span<const float> values, std::span<const uint16_t> codes) {
  return sketch_values(values, codes);
}

ParameterSketch sketch_parameter(std::span<const double> values, std::span<const uint16_t> codes) {
  return sketch_values(values, codes);
}

std::vector<uint8_t> sketch_signs(const std::string& tap, int64_t row_size) {
  constexpr size_t kBytesPerBlock = 32;
  const std::array<uint64_t, 2> key = {0, fnv1a64("sketch." + tap)};
  std::vector<uint8_t> signs(static_cast<size_t>(row_size));
  std::array<uint64_t, 4> words = {};
  for (size_t i = 0; i < signs.size(); ++i) {
    const size_t byte = i % kBytesPerBlock;
    if (byte == 0) words = philox4x64_block({1 + i / kBytesPerBlock, 0, 0, 0}, key);
    signs[i] = static_cast<uint8_t>(words[byte / 8] >> (8 * (byte % 8)));
  }
  return signs;
}

void project(std::span<const double> row, std::span<const uint8_t> signs, std::span<double> out) {
  static const std::array<Signs, 256> table = make_sign_table();
  if (row.size() != signs.size() || out.size() != kProjections) {
    throw Error(ExitCode::internal, {.where = "sketch",
                                     .what = "row and sign counts",
                                     .expected = std::to_string(signs.size()),
                                     .got = std::to_string(row.size())});
  }
  Signs sums = {};
  for (size_t i = 0; i < row.size(); ++i) {
    const double value = row[i] == -std::numeric_limits<double>::infinity() ? 0.0 : row[i];
    const Signs& sign = table[signs[i]];
    for (int p = 0; p < kProjections; ++p) sums[p] += sign[p] * value;
  }
  for (int p = 0; p < kProjections; ++p) out[p] = sums[p];
}

SketchRows sketch_rows(const TapName& tap, const Shape& shape) {
  const int64_t total = numel(shape);
  const auto rows_of = [total](int64_t count) {
    return SketchRows{.count = count, .size = count == 0 ? 0 : total / count};
  };
  switch (tap.info.kind) {
    case TapKind::scalar:
    case TapKind::series:
    case TapKind::gradient:
      return rows_of(1);
    case TapKind::attention:  // [B,H,S,T]
      return rows_of(shape.at(0) * shape.at(2));
    default:  // [B,S,...] and [B,T,D]
      return rows_of(shape.at(0) * shape.at(1));
  }
}

std::vector<int64_t> chosen_rows(int64_t B, int64_t S, int64_t index_topk) {
  const int64_t first = std::min(index_topk, S - 1), last = S - 1;
  const std::set<int64_t> rows = {first, last, B / 2 * S + S / 2, (B - 1) * S + last};
  return {rows.begin(), rows.end()};
}

namespace {

// Row `r` of sketch_rows, -inf as 0.
void gather_row(const TapName& tap, const HostTensor& value, const SketchRows& rows, int64_t r,
                std::vector<double>& out) {
  out.resize(static_cast<size_t>(rows.size));
  const Shape& shape = value.shape();
  const bool heads_first = tap.info.kind == TapKind::attention;  // [B,H,S,T]
  const int64_t H = heads_first ? shape[1] : 1, S = heads_first ? shape[2] : 1;
  const int64_t T = heads_first ? shape[3] : rows.size;
  for (int64_t h = 0; h < H; ++h) {
    const int64_t from = heads_first ? ((r / S * H + h) * S + r % S) * T : r * rows.size;
    for (int64_t t = 0; t < T; ++t) {
      const double x = value.at(from + t);
      out[static_cast<size_t>(h * T + t)] = x == -std::numeric_limits<double>::infinity() ? 0 : x;
    }
  }
}

}  // namespace

TapSketch sketch_tap(const TapName& tap, const HostTensor& value,
                     const std::vector<int64_t>& index) {
  const SketchRows rows = sketch_rows(tap, value.shape());
  const std::vector<uint8_t> signs = sketch_signs(tap.full, rows.size);
  TapSketch sketch{.shape = value.shape(), .row_index = index};
  std::vector<double> row;
  std::array<double, kProjections> projected;
  const bool gradient = tap.info.kind == TapKind::gradient;
  for (int64_t r = 0; r < rows.count; ++r) {
    gather_row(tap, value, rows, r, row);
    double squares = 0;
    for (const double x : row) squares += x * x;
    sketch.row_norms.push_back(static_cast<float>(std::sqrt(squares)));
    project(row, signs, projected);
    sketch.projections.insert(sketch.projections.end(), projected.begin(), projected.end());
    if (!gradient && std::find(index.begin(), index.end(), r) != index.end())
      sketch.rows.insert(sketch.rows.end(), row.begin(), row.end());
  }
  if (!gradient) return sketch;
  const bool vector = value.shape().size() < 2;
  const int64_t size = vector ? rows.size : rows.size / value.shape()[0];
  if (vector) sketch.row_index = {0};
  for (const int64_t i : sketch.row_index)
    sketch.rows.insert(sketch.rows.end(), row.begin() + i * size, row.begin() + (i + 1) * size);
  return sketch;
}

HostTensor tensor_of_rows(const TapSketch& sketch) {
  HostTensor out(DType::float32, sketch.shape);
  const auto to = out.data<float>();
  const auto size = static_cast<int64_t>(sketch.rows.size() / sketch.row_index.size());
  for (size_t j = 0; j < sketch.row_index.size(); ++j)
    std::copy_n(sketch.rows.begin() + static_cast<int64_t>(j) * size, size,
                to.begin() + sketch.row_index[j] * size);
  return out;
}

}  // namespace dsv32
