#include "src/optimized/kernels/route.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

// One warp per token.
constexpr unsigned kWarps = 4;
constexpr int kNobody = 0x7fffffff;

struct Candidate {
  float score;
  int index;
};

__device__ Candidate nobody() { return {-INFINITY, kNobody}; }

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ float ordered(float score) { return score == score ? score : -INFINITY; }

/// Score descending, then index ascending.
__device__ bool is_before(const Candidate& a, const Candidate& b) {
  if (a.score != b.score) return a.score > b.score;
  if (mutant(RouteMutant::higher_index) && b.index != kNobody) {
    return a.index > b.index && a.index != kNobody;
  }
  return a.index < b.index;
}

/// Every lane gets the first candidate of the warp.
__device__ Candidate warp_first(Candidate own) {
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    const Candidate other{__shfl_xor_sync(kFullWarp, own.score, bits),
                          __shfl_xor_sync(kFullWarp, own.index, bits)};
    if (is_before(other, own)) own = other;
  }
  return own;
}

/// The first of experts [begin, end) but `taken`; `choice` holds their scores.
__device__ Candidate first_but(const float* choice, int begin, int end, int taken) {
  Candidate best = nobody();
  for (int e = begin + static_cast<int>(threadIdx.x); e < end; e += kWarpSize) {
    const Candidate own{choice[e], e};
    if (e != taken && is_before(own, best)) best = own;
  }
  return warp_first(best);
}

/// One bit per kept group; the same in every lane.
__device__ unsigned best_groups(const RouteParams& p, const float* choice) {
  const int lane = static_cast<int>(threadIdx.x);
  const int size = static_cast<int>(p.experts / p.groups);
  Candidate own = nobody();  // lane g: group g
  for (int g = 0; g < p.groups; ++g) {
    const Candidate best = first_but(choice, g * size, (g + 1) * size, kNobody);
    const Candidate second = first_but(choice, g * size, (g + 1) * size, best.index);
    const bool single = size == 1 || mutant(RouteMutant::best_of_group);
    const float score = single ? best.score : ordered(best.score + second.score);
    if (lane == g) own = {score, g};
  }
  unsigned kept = 0;
  for (int i = 0; i < p.kept_groups; ++i) {
    kept |= 1u << warp_first((kept >> lane & 1u) != 0 ? nobody() : own).index;
  }
  return kept;
}

/// Bit j of the result: expert lane + 32 j is chosen.
__device__ unsigned choose(const RouteParams& p, const float* choice, unsigned kept_groups) {
  const int lane = static_cast<int>(threadIdx.x);
  const int size = static_cast<int>(p.experts / p.groups);
  unsigned chosen = 0;
  for (int i = 0; i < p.k; ++i) {
    Candidate best = nobody();
    for (int e = lane, j = 0; e < p.experts; e += kWarpSize, ++j) {
      const bool is_open = (kept_groups >> (e / size) & 1u) != 0 && (chosen >> j & 1u) == 0;
      const Candidate own{choice[e], e};
      if (is_open && is_before(own, best)) best = own;
    }
    const int taken = warp_first(best).index;
    if (taken % kWarpSize == lane) chosen |= 1u << (taken / kWarpSize);
  }
  return chosen;
}

/// Sum over lanes 0 to count - 1, in this order.
__device__ float ordered_sum(float value, int count) {
  float total = 0;
  for (int i = 0; i < count; ++i) total += __shfl_sync(kFullWarp, value, i);
  return total;
}

/// Weight of lane i's expert; `score` is its s, 0 from lane k on.
__device__ float routing_weight(float score, int k, float scale, bool normalise) {
  const float total = ordered_sum(score, k);
  if (normalise) score /= total + kRouteEps;
  if (mutant(RouteMutant::scale_twice)) score *= scale;
  return score * scale;
}

__global__ void __launch_bounds__(kWarps* kWarpSize) route_kernel(RouteParams p) {
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (token >= p.tokens) return;
  float* choice = shared_memory<float>() + threadIdx.y * p.experts;  // [experts]
  int* order = shared_memory<int>(kWarps * p.experts * sizeof(float)) + threadIdx.y * kWarpSize;
  const float* logits = p.logits + token * p.experts;

  const bool drops = mutant(RouteMutant::wrong_tail);
  for (int e = lane; e < p.experts; e += kWarpSize) {
    choice[e] = drops && e == p.experts - 1 ? -INFINITY : ordered(sigmoid(logits[e]) + p.bias[e]);
  }
  __syncwarp();
  const unsigned chosen = choose(p, choice, best_groups(p, choice));

  int before = 0;
  for (int j = 0; j * kWarpSize < p.experts; ++j) {
    const bool mine = (chosen >> j & 1u) != 0;
    const unsigned votes = __ballot_sync(kFullWarp, mine);
    if (mine) order[before + __popc(votes & ((1u << lane) - 1u))] = lane + j * kWarpSize;
    before += __popc(votes);
  }
  __syncwarp();
  const int expert = lane < p.k ? order[lane] : 0;
  float score = lane < p.k ? sigmoid(logits[expert]) : 0.0f;
  if (mutant(RouteMutant::biased_weights) && lane < p.k) score = choice[expert];
  const float weight = routing_weight(score, static_cast<int>(p.k), p.scale, p.normalise);
  if (lane >= p.k) return;
  p.chosen[token * p.k + lane] = expert;
  p.weights[token * p.k + lane] = weight;
}

__global__ void __launch_bounds__(kWarps* kWarpSize)
    routing_weights_kernel(RoutingWeightsParams p) {
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (token >= p.tokens) return;
  const int expert = lane < p.k ? p.chosen[token * p.k + lane] : -1;
  const bool valid = expert >= 0 && expert < p.experts;
  const float score = valid ? sigmoid(p.logits[token * p.experts + expert]) : 0.0f;
  const float weight = routing_weight(score, static_cast<int>(p.k), p.scale, p.normalise);
  if (lane < p.k) p.weights[token * p.k + lane] = weight;
}

/// With n = sum of s + 1e-20: dL/ds_i = scale / n (dw_i - sum_j dw_j s_j / n), ds/dlogit = s (1-s).
__global__ void __launch_bounds__(kWarps* kWarpSize) route_backward_kernel(RouteBackwardParams p) {
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (token >= p.tokens) return;
  float* dlogits = p.dlogits + token * p.experts;
  if (!mutant(RouteMutant::stale_gradient)) {
    for (int e = lane; e < p.experts; e += kWarpSize) dlogits[e] = 0;
  }
  __syncwarp();
  const int expert = lane < p.k ? p.chosen[token * p.k + lane] : -1;
  const bool valid = expert >= 0 && expert < p.experts;
  const float score = valid ? sigmoid(p.logits[token * p.experts + expert]) : 0.0f;
  const float dweight = valid ? p.dweights[token * p.k + lane] : 0.0f;
  const int k = static_cast<int>(p.k);
  float dscore = dweight * p.scale;
  if (p.normalise) {
    const float total = ordered_sum(score, k) + kRouteEps;
    const float shared = ordered_sum(dweight * (score / total), k);
    dscore = p.scale / total * (dweight - (mutant(RouteMutant::uncoupled) ? 0.0f : shared));
  }
  if (valid) dlogits[expert] = dscore * score * (1.0f - score);
}

unsigned blocks(int64_t tokens) { return static_cast<unsigned>(ceil_div<int64_t>(tokens, kWarps)); }

}  // namespace

void launch_route(const RouteParams& p, Stream stream) {
  if (p.tokens == 0) return;
  const size_t words = kWarps * (static_cast<size_t>(p.experts) + kWarpSize);
  launch(route_kernel,
         {.name = "route",
          .grid = blocks(p.tokens),
          .block = dim3(kWarpSize, kWarps),
          .shared_bytes = words * sizeof(float)},
         stream, p);
}

void launch_routing_weights(const RoutingWeightsParams& p, Stream stream) {
  if (p.tokens == 0) return;
  launch(routing_weights_kernel,
         {.name = "routing_weights", .grid = blocks(p.tokens), .block = dim3(kWarpSize, kWarps)},
         stream, p);
}

void launch_route_backward(const RouteBackwardParams& p, Stream stream) {
  if (p.tokens == 0) return;
  launch(route_backward_kernel,
         {.name = "route_backward", .grid = blocks(p.tokens), .block = dim3(kWarpSize, kWarps)},
         stream, p);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
