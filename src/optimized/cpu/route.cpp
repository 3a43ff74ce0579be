#include "src/optimized/ops/route.h"

#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "src/optimized/cpu/parallel.h"

namespace dsv32::optimized::cpu {
namespace {

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

float ordered(float score) {
  return std::isnan(score) ? -std::numeric_limits<float>::infinity() : score;
}

/// Moves the first `count` under (score descending, index ascending) to the front of `ids`.
void first_to_front(std::vector<int32_t>& ids, int64_t count, const std::vector<float>& scores) {
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(), [&](int32_t a, int32_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  });
}

/// Sum of the two best of scores[begin, end).
float group_score(const std::vector<float>& scores, int64_t begin, int64_t end) {
  float best = -std::numeric_limits<float>::infinity(), second = best;
  for (int64_t e = begin; e < end; ++e) {
    second = std::max(second, std::min(best, scores[e]));
    best = std::max(best, scores[e]);
  }
  return end - begin == 1 ? best : ordered(best + second);
}

/// Weights of one token; as RoutingWeightsParams.
void weigh(const float* logits, const int32_t* chosen, int64_t k, bool normalise, float scale,
           float* weights) {
  float total = 0;
  for (int64_t i = 0; i < k; ++i) total += weights[i] = sigmoid(logits[chosen[i]]);
  const float divisor = normalise ? total + kRouteEps : 1.0f;
  for (int64_t i = 0; i < k; ++i) weights[i] = weights[i] / divisor * scale;
}

void route_tokens(const RouteParams& p, int64_t begin, int64_t end) {
  const int64_t size = p.experts / p.groups;
  std::vector<float> choice(p.experts), group_scores(p.groups);
  std::vector<int32_t> groups(p.groups), open(size * p.kept_groups);
  for (int64_t token = begin; token < end; ++token) {
    const float* logits = p.logits + token * p.experts;
    for (int64_t e = 0; e < p.experts; ++e) choice[e] = ordered(sigmoid(logits[e]) + p.bias[e]);
    for (int32_t g = 0; g < p.groups; ++g) {
      groups[g] = g;
      group_scores[g] = group_score(choice, g * size, (g + 1) * size);
    }
    first_to_front(groups, p.kept_groups, group_scores);
    for (size_t i = 0; i < open.size(); ++i) {
      open[i] = static_cast<int32_t>(groups[i / size] * size + i % size);
    }
    first_to_front(open, p.k, choice);
    std::sort(open.begin(), open.begin() + p.k);
    std::copy_n(open.begin(), p.k, p.chosen + token * p.k);
    weigh(logits, p.chosen + token * p.k, p.k, p.normalise, p.scale, p.weights + token * p.k);
  }
}

void backward_tokens(const RouteBackwardParams& p, int64_t begin, int64_t end) {
  std::vector<float> score(p.k);
  for (int64_t token = begin; token < end; ++token) {
    const float* logits = p.logits + token * p.experts;
    const float* dweights = p.dweights + token * p.k;
    const int32_t* chosen = p.chosen + token * p.k;
    float* dlogits = p.dlogits + token * p.experts;
    float total = 0, shared = 0;
    for (int64_t i = 0; i < p.k; ++i) total += score[i] = sigmoid(logits[chosen[i]]);
    const float divisor = p.normalise ? total + kRouteEps : 1.0f;
    for (int64_t i = 0; p.normalise && i < p.k; ++i) shared += dweights[i] * (score[i] / divisor);
    std::fill_n(dlogits, p.experts, 0.0f);
    for (int64_t i = 0; i < p.k; ++i) {
      const float dscore = p.scale / divisor * (dweights[i] - shared);
      dlogits[chosen[i]] = dscore * score[i] * (1.0f - score[i]);
    }
  }
}

std::tuple<at::Tensor, at::Tensor> route(const at::Tensor& logits, const at::Tensor& bias,
                                         int64_t n_group, int64_t topk_group, int64_t k,
                                         bool normalise, double scale) {
  return run_route(logits, bias, {n_group, topk_group, k, normalise, scale},
                   [](const RouteParams& p) {
                     parallel_for(p.tokens, row_grain(p.experts),
                                  [&](int64_t begin, int64_t end) { route_tokens(p, begin, end); });
                   });
}

at::Tensor routing_weights(const at::Tensor& logits, const at::Tensor& experts, bool normalise,
                           double scale) {
  return run_routing_weights(logits, experts, normalise, scale, [](const RoutingWeightsParams& p) {
    for (int64_t token = 0; token < p.tokens; ++token) {
      weigh(p.logits + token * p.experts, p.chosen + token * p.k, p.k, p.normalise, p.scale,
            p.weights + token * p.k);
    }
  });
}

at::Tensor route_backward(const at::Tensor& dweights, const at::Tensor& logits,
                          const at::Tensor& experts, bool normalise, double scale) {
  return run_route_backward(
      dweights, logits, experts, normalise, scale, [](const RouteBackwardParams& p) {
        parallel_for(p.tokens, row_grain(p.experts),
                     [&](int64_t begin, int64_t end) { backward_tokens(p, begin, end); });
      });
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("route", &route);
  m.impl("routing_weights", &routing_weights);
  m.impl("route_backward", &route_backward);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
