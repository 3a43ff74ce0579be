#pragma once

#include <cstdint>
#include <vector>

#include "src/model/trace.h"

namespace dsv32::harness {

/// The errors of a run's rows, lane by lane (element by element of a row), and how many of them go
/// their own way.
class LaneErrors {
 public:
  /// `tokens`: of how many rows will be added (or how many rows, where there are none); a sample of
  /// them, evenly spread, is kept. `first`: tokens before the first one added here.
  explicit LaneErrors(int64_t tokens, int64_t first = 0);

  /// Row `a` against row `b` of the truth. Rows of one `token` that follow each other are its
  /// heads.
  void add(const std::vector<double>& a, const std::vector<double>& b, int64_t token = -1);

  /// Adds what was added to another one, whose tokens come after those of this one.
  void append(LaneErrors other);

  /// Root mean square of each lane; empty before the first row.
  std::vector<double> rms() const;

  Modes modes() const;

 private:
  int64_t stride_, rows_ = 0, tokens_ = 0, token_ = -1;
  size_t length_ = 1;  // of a row
  std::vector<double> squares_;
  std::vector<std::vector<double>> sample_;  // of tokens
};

/// Keeps the larger of each lane in `lanes`.
void keep_larger_lanes(const std::vector<double>& others, std::vector<double>& lanes);

/// The smaller of two numbers, of those that are known.
double fewer(double a, double b);
Modes fewer(const Modes& a, const Modes& b);

}  // namespace dsv32::harness
