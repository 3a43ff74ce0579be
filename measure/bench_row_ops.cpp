// bench_ops: ops that work row by row. All of them are bound by memory.

#include <algorithm>
#include <cmath>

#include "measure/bench_ops.h"

namespace dsv32::suites {
namespace {

constexpr double kEps = 1e-6;
constexpr int64_t kFp8Block = 128;
constexpr double kFp8Largest = 448;  // of e4m3
const std::vector<at::ScalarType> kBoth = {at::kFloat, at::kBFloat16};

/// `tensors` of the size of x, each read or written once.
Work passes(const Setting& s, const Tensor& x, double tensors) {
  return {.bytes = tensors * static_cast<double>(x.numel()) * s.width()};
}

Tensor rows(const Setting& s) { return s.normal({s.tokens(), s.config.hidden_size}); }

// --- norms --------------------------------------------------------------------------------------

/// As modelling code has it: float32 inside.
Tensors eager_rms_norm(const Tensor& x, const Tensor& weight) {
  const Tensor wide = x.to(at::kFloat);
  const Tensor scale = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + kEps);
  return {weight * (wide * scale).to(x.scalar_type())};
}

OpCase rms_norm(const Setting& s) {
  const Tensor x = rows(s), weight = s.normal({x.size(1)});
  return {.size = size_of(x),
          .work = passes(s, x, 2),  // x, y
          .arguments = {x, weight, kEps},
          .composition = [=] { return eager_rms_norm(x, weight); }};
}

OpCase add_rms_norm(const Setting& s) {
  const Tensor x = rows(s), residual = rows(s), weight = s.normal({x.size(1)});
  return {.size = size_of(x),
          .work = passes(s, x, 4),  // x, residual, y, sum
          .arguments = {x, residual, weight, kEps},
          .composition = [=] {
            const Tensor sum = x + residual;
            return Tensors{eager_rms_norm(sum, weight)[0], sum};
          }};
}

OpCase rms_norm_backward(const Setting& s) {
  const Tensor x = rows(s), dy = rows(s), weight = s.normal({x.size(1)});
  const Tensor rstd = call_op("rms_norm", {x, weight, kEps})[1];
  return {.size = size_of(x),
          .work = passes(s, x, 3),  // dy, x, dx
          .arguments = {dy, x, weight, rstd, c10::IValue()},
          .composition = autograd_of([](const Tensors& in) { return eager_rms_norm(in[0], in[1]); },
                                     {x, weight}, {dy})};
}

struct LayerNorm {
  Tensor x, weight, bias;

  explicit LayerNorm(const Setting& s)
      : x(s.normal({s.tokens(), s.config.index_head_dim})),
        weight(s.normal({x.size(1)})),
        bias(s.normal({x.size(1)})) {}
};

Tensors eager_layer_norm(const Tensors& in) {
  return {at::layer_norm(in[0], {in[0].size(-1)}, in[1], in[2], kEps)};
}

OpCase layer_norm(const Setting& s) {
  const LayerNorm n(s);
  return {.size = size_of(n.x),
          .work = passes(s, n.x, 2),  // x, y
          .arguments = {n.x, n.weight, n.bias, kEps},
          .composition = [n] {
            return eager_layer_norm({n.x, n.weight, n.bias});
          }};
}

OpCase layer_norm_backward(const Setting& s) {
  const LayerNorm n(s);
  const Tensors out = call_op("layer_norm", {n.x, n.weight, n.bias, kEps});
  const Tensor dy = s.normal(n.x.sizes());
  return {.size = size_of(n.x),
          .work = passes(s, n.x, 3),  // dy, x, dx
          .arguments = {dy, n.x, n.weight, out[1], out[2]},
          .composition = autograd_of(eager_layer_norm, {n.x, n.weight, n.bias}, {dy})};
}

// --- rotations ----------------------------------------------------------------------------------

/// Rotates the first lanes of x [B,S,H,lanes] by cos and sin [B,S,pairs].
Tensor eager_rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  const int64_t rotated = 2 * cos.size(-1);
  const Tensor wide = x.to(at::kFloat), c = cos.unsqueeze(2), s = sin.unsqueeze(2);
  const Tensor first = wide.narrow(-1, 0, rotated);
  const Tensor pairs =
      interleaved ? first.unflatten(-1, {-1, 2}) : first.unflatten(-1, {2, -1}).transpose(-1, -2);
  const Tensor a = pairs.select(-1, 0), b = pairs.select(-1, 1);
  const int64_t axis = interleaved ? -1 : -2;
  const Tensor turned = at::stack({a * c - b * s, b * c + a * s}, axis).flatten(-2);
  const Tensor rest = wide.narrow(-1, rotated, x.size(-1) - rotated);
  return at::cat({turned, rest}, -1).to(x.scalar_type());
}

OpCase rope(const Setting& s, const Tensor& x, bool interleaved, bool inverse) {
  const Tensor angle = at::randn({s.B, s.S, s.config.qk_rope_head_dim / 2});
  const Tensor cos = angle.cos(), sin = angle.sin();
  return {.size = size_of(x),
          .work = passes(s, x, 2),  // x, y
          .arguments = {x, cos, sin, interleaved, inverse},
          .composition = [=] {
            return Tensors{eager_rope(x, cos, inverse ? -sin : sin, interleaved)};
          }};
}

/// q_rope of the attention.
Tensor rope_heads(const Setting& s) {
  return s.normal({s.B, s.S, s.config.num_attention_heads, s.config.qk_rope_head_dim});
}

Tensor indexer_heads(const Setting& s) {
  return s.normal({s.B, s.S, s.config.index_n_heads, s.config.index_head_dim});
}

/// Sylvester's matrix, [n,n].
Tensor hadamard_matrix(int64_t n) {
  Tensor matrix = at::ones({1, 1});
  while (matrix.size(0) < n) {
    matrix = at::cat({at::cat({matrix, matrix}, 1), at::cat({matrix, -matrix}, 1)}, 0);
  }
  return matrix;
}

OpCase hadamard(const Setting& s) {
  const Tensor x = indexer_heads(s);
  const double scale = 1 / std::sqrt(static_cast<double>(x.size(-1)));
  const Tensor matrix = (hadamard_matrix(x.size(-1)) * scale).to(s.dtype);
  return {.size = size_of(x),
          .work = passes(s, x, 2),  // x, y
          .arguments = {x, scale},
          .composition = [=] { return Tensors{at::matmul(x, matrix)}; }};
}

// --- swiglu -------------------------------------------------------------------------------------

Tensors eager_swiglu(const Tensors& in) { return {at::silu(in[0]) * in[1]}; }

Tensor inner_rows(const Setting& s) { return s.normal({s.tokens(), s.config.intermediate_size}); }

OpCase swiglu(const Setting& s) {
  const Tensor gate = inner_rows(s), up = inner_rows(s);
  return {.size = size_of(gate),
          .work = passes(s, gate, 3),  // gate, up, y
          .arguments = {gate, up},
          .composition = [=] {
            return eager_swiglu({gate, up});
          }};
}

OpCase swiglu_backward(const Setting& s) {
  const Tensor gate = inner_rows(s), up = inner_rows(s), dy = inner_rows(s);
  return {.size = size_of(gate),
          .work = passes(s, gate, 5),  // dy, gate, up, dgate, dup
          .arguments = {dy, gate, up},
          .composition = autograd_of(eager_swiglu, {gate, up}, {dy})};
}

// --- cache and FP8 ------------------------------------------------------------------------------

OpCase cache_append(const Setting& s) {
  const int64_t width = s.config.kv_lora_rank + s.config.qk_rope_head_dim, first = s.S / 2;
  const Tensor cache = s.normal({s.B, 2 * s.S, width}), fresh = s.normal({s.B, s.S, width});
  return {.size = size_of(fresh),
          .work = passes(s, fresh, 2),  // fresh, its place in the cache
          .arguments = {cache, fresh, first},
          .composition = [own = cache.clone(), fresh, first] {
            own.narrow(1, first, fresh.size(1)).copy_(fresh);
            return Tensors{own};
          }};
}

/// Each scale over its block of `like`.
Tensor spread(const Tensor& scales, const Tensor& like) {
  return scales.repeat_interleave(kFp8Block, -1)
      .repeat_interleave(kFp8Block, -2)
      .narrow(-1, 0, like.size(-1))
      .narrow(-2, 0, like.size(-2));
}

OpCase fp8_dequant(const Setting& s) {
  const auto blocks = [](int64_t size) { return (size + kFp8Block - 1) / kFp8Block; };
  const int64_t out = s.config.intermediate_size, in = s.config.hidden_size;
  const Tensor codes = at::randn({out, in}).to(at::kFloat8_e4m3fn).view(at::kByte);
  const Tensor scales = at::rand({blocks(out), blocks(in)}) + 0.5;
  return {.size = size_of(codes),
          .work = {.bytes = static_cast<double>(codes.numel()) * (1 + s.width())},
          .arguments = {codes, scales, s.dtype},
          .composition = [=, dtype = s.dtype] {
            const Tensor values = codes.view(at::kFloat8_e4m3fn).to(at::kFloat);
            return Tensors{(values * spread(scales, codes)).to(dtype)};
          }};
}

Tensors eager_fp8_quant(const Tensor& x) {
  const int64_t width = std::min(kFp8Block, x.size(-1));
  const Tensor groups = x.to(at::kFloat).unflatten(-1, {-1, width});
  const Tensor highest = groups.abs().amax(-1, /*keepdim=*/true).clamp_min(1e-4);
  const Tensor exponent = at::ceil(at::log2(highest / kFp8Largest));
  const Tensor scaled = (groups / at::exp2(exponent)).clamp(-kFp8Largest, kFp8Largest);
  return {scaled.to(at::kFloat8_e4m3fn).view(at::kByte).flatten(-2),
          (exponent + 127).to(at::kByte).squeeze(-1)};
}

OpCase fp8_quant(const Setting& s) {
  const Tensor x = rows(s);
  return {.size = size_of(x),
          .work = {.bytes = static_cast<double>(x.numel()) * (1 + s.width())},
          .arguments = {x},
          .composition = [=] { return eager_fp8_quant(x); }};
}

OpCase fp8_quant_runs(const Setting& s) {
  const Tensor x = rows(s);
  return {.size = size_of(x),
          .work = {.bytes = static_cast<double>(x.numel()) * (1 + s.width())},
          .arguments = {x, kFp8Block, true},
          .composition = [=] { return eager_fp8_quant(x); }};
}

OpCase fp8_linear(const Setting& s) {
  const int64_t out = s.config.intermediate_size, in = s.config.hidden_size;
  const int64_t runs = (in + kFp8Block - 1) / kFp8Block;
  const auto codes = [](int64_t count, int64_t width) {
    return at::randn({count, width}).to(at::kFloat8_e4m3fn).view(at::kByte);
  };
  const Tensor x = codes(rows(s).flatten(0, -2).size(0), in), w = codes(out, in);
  const Tensor x_scales = at::rand({x.size(0), runs}) + 0.5;
  const Tensor w_scales = at::rand({(out + kFp8Block - 1) / kFp8Block, runs}) + 0.5;
  const double products = 2.0 * static_cast<double>(x.numel()) * static_cast<double>(out);
  return {.size = size_of(x),
          .work = {.flops = products},
          .arguments = {x, x_scales, w, w_scales, kFp8Block, kFp8Block},
          .composition = [=] {
            const auto values = [](const Tensor& c) {
              return c.view(at::kFloat8_e4m3fn).to(at::kFloat);
            };
            const Tensor wide = x_scales.repeat_interleave(kFp8Block, -1);
            const Tensor left = values(x) * wide.narrow(-1, 0, in);
            const Tensor y = at::linear(left, values(w) * spread(w_scales, w));
            return Tensors{y.to(at::kBFloat16)};
          }};
}

}  // namespace

std::vector<OpEntry> row_ops() {
  return {
      {"rms_norm", "", kBoth, rms_norm},
      {"add_rms_norm", "", kBoth, add_rms_norm},
      {"rms_norm_backward", "", kBoth, rms_norm_backward},
      {"layer_norm", "", kBoth, layer_norm},
      {"layer_norm_backward", "", kBoth, layer_norm_backward},
      {"rope", " interleaved", kBoth,
       [](const Setting& s) { return rope(s, rope_heads(s), true, false); }},
      {"rope", " interleaved inverse", kBoth,
       [](const Setting& s) { return rope(s, rope_heads(s), true, true); }},
      {"rope", " half-split", kBoth,
       [](const Setting& s) { return rope(s, indexer_heads(s), false, false); }},
      {"hadamard", "", kBoth, hadamard},
      {"swiglu", "", kBoth, swiglu},
      {"swiglu_backward", "", kBoth, swiglu_backward},
      {"cache_append", "", kBoth, cache_append},
      {"fp8_dequant", "", kBoth, fp8_dequant},
      {"fp8_quant", "", kBoth, fp8_quant},
      {"fp8_quant_runs", "", kBoth, fp8_quant_runs},
      {"fp8_linear", "", {at::kBFloat16}, fp8_linear},
  };
}

}  // namespace dsv32::suites
