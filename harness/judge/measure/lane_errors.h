#pragma once

#include <cstdint>
#include <vector>

namespace dsv32::harness {

/// The errors of a run's rows, lane by lane (element by element of a row), and how many of them go
/// their own way.
class LaneErrors {
 public:
  /// `rows`: how many will be added; a sample of them, evenly spread, is kept.
  explicit LaneErrors(int64_t rows);

  /// Row `a` against row `b` of the truth.
  void add(const std::vector<double>& a, const std::vector<double>& b);

  /// Root mean square of each lane; empty before the first row.
  std::vector<double> rms() const;

  /// The number of independent lanes that would stray as much: 1 / mean squared cosine between the
  /// errors of two rows. One factor that is off moves a whole row along a line, whatever its width.
  /// 0: not known, of too few rows or none with an error.
  double modes() const;

 private:
  int64_t stride_, rows_ = 0;
  std::vector<double> squares_;
  std::vector<std::vector<double>> sample_;
};

/// Keeps the larger of each lane in `lanes`.
void keep_larger_lanes(const std::vector<double>& others, std::vector<double>& lanes);

/// The smaller of two numbers of modes, of those that are known.
double fewer_modes(double a, double b);

}  // namespace dsv32::harness
