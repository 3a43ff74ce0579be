#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/judge/measure/metrics.h"
#include "harness/judge/verdict.h"

/// Where an error lies: rows by heads, experts, keys or lanes.
namespace dsv32::harness {

/// Each cell is the error of its elements over what the row limit allows them; of a tap without a
/// reference over the cap. Of a tap with heads a column is a head, else an element of the row.
Picture picture_of_error(const Comparison& c, const RowLayout& layout, const TapError& error);

/// Largest value of each cell of a grid that is too large to be shown.
class Painter {
 public:
  Painter(int64_t rows, int64_t columns);
  /// `value`: error over limit; NaN is the worst.
  void add(int64_t row, int64_t column, double value);
  void add_digit(int64_t row, int64_t column, char digit);
  std::vector<std::string> cells() const { return cells_; }

 private:
  int64_t rows_, columns_;
  std::vector<std::string> cells_;
};

/// Whose pick each key or expert is, token by token.
class ChoicePainter {
 public:
  ChoicePainter(const Batch& batch, int64_t columns, std::string called);
  void add(int64_t row, const std::vector<int64_t>& judged, const std::vector<int64_t>& oracle);
  const Picture& picture();

 private:
  Painter painter_;
  Picture picture_;
};

}  // namespace dsv32::harness
