#include "harness/judge/op_limits.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace dsv32::harness {
namespace {

// A float32 sum of n terms in a tree of warps errs by a few roundings of its magnitude; a bf16
// result adds one rounding of its own, and nothing else shows at that size.
constexpr OpLimit kOpLimits[] = {
    // tensor, float32, bf16, basis
    {"rms_norm.y", 6, 1.1, "sum of squares, root, two products"},
    {"rms_norm.sum", 1, 1.1, "one addition"},
    {"rms_norm.rstd", 5, 5, "sum of squares and root; float32 in both"},
    {"rms_norm.dx", 8, 1.1, "scale is the sum of the terms' magnitudes"},
    {"rms_norm.dweight", 6, 6, "float32 in both; one addition per row of a block"},
    {"index_scores.scores", 12, 12, "scale is the sum of the terms' magnitudes; float32 in both"},
    {"index_scores.dweights", 12, 12, "as scores"},
    {"index_scores.dq", 12, 2.2, "scale as scores; bf16 rounds each slope and the result"},
    {"index_scores.dk", 12, 2.2, "as dq; bf16 rounds weight times slope"},
    {"kl.target", 8, 8, "scale is the value times the size of its exponent; float32 in both"},
    {"kl.student", 8, 8, "as target"},
    {"kl.rows", 8, 8, "scale is the sum of the terms' magnitudes times the exponent's size"},
    {"kl.dscores", 8, 8, "as target; a difference of two"},
    {"layer_norm.y", 6, 1.1, "scale has the mean's part, which cancels in x - mean"},
    {"layer_norm.mean", 5, 5, "one sum; scale is the mean magnitude; float32 in both"},
    {"layer_norm.rstd", 5, 5, "sum of squares and root; float32 in both"},
    {"layer_norm.dx", 8, 1.1, "scale is the sum of the terms' magnitudes"},
    {"layer_norm.dweight", 6, 6, "as rms_norm.dweight"},
    {"layer_norm.dbias", 6, 6, "as rms_norm.dweight"},
    {"rope.y", 3, 1.1, "two products and a sum; scale is their magnitude"},
    {"hadamard.y", 4, 1.1, "log2 n additions; scale is the sum of magnitudes"},
    {"fp8_linear.y", 1.1, 1.1, "bf16; scale is the sum of the terms' magnitudes"},
    {"swiglu.y", 8, 1.1, "exponential, quotient, two products"},
    {"swiglu.dgate", 8, 1.1, "as y, and 1 + g (1 - s); scale is the sum of magnitudes"},
    {"swiglu.dup", 8, 1.1, "as y"},
    {"route.weights", 8, 8, "exponential, two quotients, a sum of k scores; float32"},
    {"route.dlogits", 12, 12, "as weights, and a sum of k products; float32"},
    {"sparse_mla.out", 4, 2, "scale: sum of the terms' magnitudes, times the spread of scores"},
    {"sparse_mla.lse", 4, 4, "scale: the spread of scores; float32 in both"},
    {"sparse_mla.dq", 4, 2, "as sparse_mla.out"},
    {"sparse_mla.dkv", 4, 2, "as sparse_mla.out"},
    {"moe.out", 500, 6, "three products; sums cancel; bf16: each product is rounded on the CPU"},
    {"moe.dx", 500, 8, "as moe.out"},
    {"moe.dweight", 500, 9, "as moe.out"},
    {"moe.dweights", 500, 500, "as moe.out; float32"},
    {"moe.dweights.bf16", 0x1p19, 0x1p19, "inner is rounded to bf16; float32 unit"},
    {"linear_cross_entropy.loss", 16, 1024, "a mean of differences; bf16: products of bf16"},
    {"linear_cross_entropy.lse", 16, 1024, "as the loss"},
    {"linear_cross_entropy.dlogits", 8, 1.1, "scale holds the roundings of exp's argument"},
    {"linear_cross_entropy.certain", 4, 4, "p - 1 of float32: roundings of 1"},
    {"linear_cross_entropy.dx", 64, 6, "sums over the vocabulary; bf16: dlogits are rounded"},
    {"linear_cross_entropy.dweight", 64, 6, "sums over the tokens; bf16: dlogits are rounded"},
    {"masked_mha.out", 4, 2, "as sparse_mla.out"},
    {"masked_mha.lse", 4, 4, "as sparse_mla.lse"},
    {"masked_mha.dq", 4, 2, "as sparse_mla.out"},
    {"masked_mha.dk_nope", 4, 2, "as sparse_mla.out"},
    {"masked_mha.dk_rope", 4, 2, "as sparse_mla.out"},
    {"masked_mha.absorbed", 8, 2, "two forms; scale: the row, times the spread of scores"},
    {"masked_mha.dv", 4, 2, "as sparse_mla.out"},
    {"embedding.dweight", 8, 1.1, "one sum; scale is the sum of the terms' magnitudes"},
    {"adamw.parameter", 8, 8, "float32; three steps"},
    {"adamw.exp_avg", 8, 8, "float32; three steps"},
    {"adamw.exp_avg_sq", 8, 8, "float32; three steps"},
    {"grad_norm", 1, 1, "float64, read as float32"},
};

}  // namespace

std::span<const OpLimit> op_limits() { return kOpLimits; }

double op_limit(std::string_view tensor, bool is_bf16) {
  const auto* found = std::find_if(std::begin(kOpLimits), std::end(kOpLimits),
                                   [&](const OpLimit& limit) { return tensor == limit.tensor; });
  if (found == std::end(kOpLimits))
    throw std::out_of_range("limits of ops: no row for " + std::string(tensor));
  return is_bf16 ? found->bf16 : found->float32;
}

}  // namespace dsv32::harness
