#include "harness/judge/measure/statistics.h"

#include <cmath>

#include "src/model/tensor.h"

namespace dsv32::harness {
namespace {

/// Continued fraction of the incomplete beta function, Lentz's method.
double beta_fraction(double a, double b, double x) {
  constexpr int kTerms = 500;
  constexpr double kTiny = 1e-300;
  const auto away = [](double value) { return std::fabs(value) < kTiny ? kTiny : value; };
  double c = 1;
  double d = 1 / away(1 - (a + b) * x / (a + 1));
  double fraction = d;
  for (int m = 1; m <= kTerms; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / away(1 + even * d);
    c = away(1 + even / c);
    fraction *= c * d;
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / away(1 + odd * d);
    c = away(1 + odd / c);
    fraction *= c * d;
    if (std::fabs(c * d - 1) < epsilon(DType::float64)) break;
  }
  return fraction;
}

/// I_x(a, b).
double incomplete_beta(double a, double b, double x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  const double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) +
                                a * std::log(x) + b * std::log1p(-x));
  if (x < (a + 1) / (a + b + 2)) return front * beta_fraction(a, b, x) / a;
  return 1 - front * beta_fraction(b, a, 1 - x) / b;
}

}  // namespace

double norm_quantile(double degrees, double normal_quantile) {
  const double spread = 2 / (9 * degrees);
  const double cube_root = 1 - spread + normal_quantile * std::sqrt(spread);
  return std::sqrt(cube_root * cube_root * cube_root);
}

double f_quantile(double d1, double d2, double probability) {
  // The beta variable x = d1 f / (d1 f + d2) lies in [0, 1].
  double low = 0, high = 1;
  while (high - low > epsilon(DType::float64) * high) {
    const double middle = (low + high) / 2;
    if (middle == low || middle == high) break;
    (incomplete_beta(d1 / 2, d2 / 2, middle) < probability ? low : high) = middle;
  }
  return d2 * low / (d1 * (1 - low));
}

double hotelling_limit(int64_t p, int64_t n, double probability) {
  const double components = static_cast<double>(p), runs = static_cast<double>(n);
  return components * (runs + 1) * (runs - 1) / (runs * (runs - components)) *
         f_quantile(components, runs - components, probability);
}

}  // namespace dsv32::harness
