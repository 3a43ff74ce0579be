#pragma once

#include <cstdint>

/// Quantiles that limits follow from.
namespace dsv32::harness {

/// sqrt(chi-square / degrees) below which the norm of that many standard normal values lies, over
/// its root mean square, by Wilson and Hilferty; `normal_quantile` names the probability.
double norm_quantile(double degrees, double normal_quantile);
/// Value below which an F(d1, d2) variable lies with this probability. By bisection on the
/// regularised incomplete beta function: I_x(d1/2, d2/2), x = d1 f / (d1 f + d2) (Abramowitz and
/// Stegun 26.6.2), its continued fraction 26.5.8 by Lentz's method.
double f_quantile(double d1, double d2, double probability);
/// Hotelling's limit for the squared distance of one new observation of `p` components from `n`
/// observed ones: p (n + 1) (n - 1) / (n (n - p)) F(p, n - p).
double hotelling_limit(int64_t p, int64_t n, double probability);

}  // namespace dsv32::harness
