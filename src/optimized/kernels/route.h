#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"

/// route: sigmoid scores, biased choice within the best groups, unbiased weights
/// (docs/spec.md 1.8), and the gradient of the weights.
namespace dsv32::optimized {

enum class RouteMutant {
  none,
  wrong_tail,      // the last expert is not seen
  higher_index,    // among equal scores the last expert is taken
  best_of_group,   // a group's score is its best expert alone
  biased_weights,  // weights are taken from the biased scores
  scale_twice,     // the scaling factor is applied twice
  stale_gradient,  // experts that were not chosen keep what lies there
  uncoupled,       // the gradient takes the sum of the weights for a constant
};

// A lane keeps the experts that it chose, and the groups, in a word of bits.
constexpr int64_t kRouteMaxExperts = 1024;
constexpr int64_t kRouteMaxGroups = 32;
constexpr int64_t kRouteMaxChosen = 32;
/// Added to the sum of the weights before the division.
constexpr float kRouteEps = 1e-20f;

/// weight_i = scale s_i / (sum of s over the chosen + 1e-20), or scale s_i without `normalise`;
/// s = sigmoid(logits).
struct RoutingWeightsParams {
  const float* logits;    // [tokens, experts]
  const int32_t* chosen;  // [tokens, k] distinct; one that is no expert has weight 0
  float* weights;         // [tokens, k]
  int64_t tokens;
  int64_t experts;
  int64_t k;
  float scale;
  bool normalise;
};

/// A group's score is the sum of its two best s + bias. NaN counts as -inf.
struct RouteParams {
  const float* logits;  // [tokens, experts]
  const float* bias;    // [experts]
  int32_t* chosen;      // [tokens, k] ascending
  float* weights;       // [tokens, k]
  int64_t tokens;
  int64_t experts;  // a multiple of `groups`
  int64_t groups;
  int64_t kept_groups;  // 1 to groups
  int64_t k;            // 1 to the experts of the kept groups
  float scale;
  bool normalise;
};

struct RouteBackwardParams {
  const float* dweights;  // [tokens, k]
  const float* logits;    // [tokens, experts]
  const int32_t* chosen;  // [tokens, k] distinct; one that is no expert has no gradient
  float* dlogits;         // [tokens, experts], 0 where not chosen
  int64_t tokens;
  int64_t experts;
  int64_t k;
  float scale;
  bool normalise;
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

void launch_route(const RouteParams& params, Stream stream);
void launch_routing_weights(const RoutingWeightsParams& params, Stream stream);
void launch_route_backward(const RouteBackwardParams& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
