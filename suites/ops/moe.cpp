// The routed experts through the dispatcher, against float64.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

struct Case {
  int64_t tokens, hidden, width, experts, k;
};

// Tiny's size; around the CPU kernel's block of rows (48) and the CUDA kernel's tile (64); no
// tokens; experts that nobody chooses.
const Case kCases[] = {{64, 64, 32, 4, 2},  {1, 16, 8, 1, 1},  {0, 16, 8, 4, 2},
                       {49, 33, 17, 2, 1},  {65, 9, 20, 2, 2}, {3, 70, 66, 9, 3},
                       {70, 256, 128, 2, 1}};  // the last: products large enough for every GEMM
constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16};

struct Inputs {
  at::Tensor x, dout, experts, weights;
  std::vector<at::Tensor> gate, up, down;
};

at::Tensor routed(const Inputs& in) {
  at::Tensor out = at::zeros_like(in.x);
  for (size_t e = 0; e < in.gate.size(); ++e) {
    const auto hits = at::where(in.experts == static_cast<int64_t>(e));
    const at::Tensor rows = in.x.index_select(0, hits[0]);
    const at::Tensor inner = at::silu(rows.mm(in.gate[e].t())) * rows.mm(in.up[e].t());
    const at::Tensor weight = in.weights.index({hits[0], hits[1]}).unsqueeze(-1);
    out = out.index_add(0, hits[0], inner.mm(in.down[e].t()) * weight);
  }
  return out;
}

Inputs wide_inputs(const Inputs& in) {
  const auto each = [](const std::vector<at::Tensor>& tensors) {
    std::vector<at::Tensor> result;
    for (const at::Tensor& t : tensors) result.push_back(wide(t).requires_grad_());
    return result;
  };
  return {wide(in.x).requires_grad_(),
          wide(in.dout),
          in.experts.cpu(),
          wide(in.weights).requires_grad_(),
          each(in.gate),
          each(in.up),
          each(in.down)};
}

class MoeOp : public OpTest {
 protected:
  Inputs inputs(const Case& c, at::ScalarType dtype) const {
    const auto each = [&](at::IntArrayRef shape, uint64_t seed) {
      std::vector<at::Tensor> tensors;
      for (int64_t e = 0; e < c.experts; ++e)
        tensors.push_back(random(shape, dtype, seed + e, 0.3));
      return tensors;
    };
    const at::Tensor scores = random({c.tokens, c.experts}, at::kFloat, 1);
    const at::Tensor best = std::get<1>(scores.topk(c.k, -1));
    return {random({c.tokens, c.hidden}, dtype, 2),  random({c.tokens, c.hidden}, dtype, 3),
            std::get<0>(best.sort(-1)).to(at::kInt), random({c.tokens, c.k}, at::kFloat, 4, 0.3, 1),
            each({c.width, c.hidden}, 100),          each({c.width, c.hidden}, 200),
            each({c.hidden, c.width}, 300)};
  }
  at::Tensor forward(const Inputs& in) const {
    return call("moe", {in.x, in.experts, in.weights, in.gate, in.up, in.down})[0];
  }
  std::vector<at::Tensor> backward(const Inputs& in) const {
    return call("moe_backward", {in.dout, in.x, in.experts, in.weights, in.gate, in.up, in.down});
  }
};

TEST_P(MoeOp, MatchesFloat64) {
  for (const auto dtype : kDtypes) {
    for (const Case& c : kCases) {
      const Inputs in = inputs(c, dtype);
      expect_close("moe.out", forward(in), routed(wide_inputs(in)));
    }
  }
}

TEST_P(MoeOp, GradientsMatchAutogradOfFloat64) {
  for (const auto dtype : kDtypes) {
    for (const Case& c : kCases) {
      const Inputs in = inputs(c, dtype), in64 = wide_inputs(in);
      std::vector<at::Tensor> leaves = {in64.x, in64.weights};
      for (const auto* list : {&in64.gate, &in64.up, &in64.down}) {
        leaves.insert(leaves.end(), list->begin(), list->end());
      }
      const auto want = torch::autograd::grad({routed(in64)}, leaves, {in64.dout}, {}, false,
                                              /*allow_unused=*/true);
      const auto got = backward(in);
      ASSERT_EQ(got.size(), want.size());
      for (size_t i = 0; i < got.size(); ++i) {
        const at::Tensor expected = want[i].defined() ? want[i] : at::zeros_like(leaves[i]);
        const bool rounded = i == 1 && dtype == at::kBFloat16;
        const char* name = i == 0    ? "moe.dx"
                           : rounded ? "moe.dweights.bf16"
                           : i == 1  ? "moe.dweights"
                                     : "moe.dweight";
        const at::Tensor size = at::maximum(expected.abs(), expected.square().mean().sqrt());
        expect_close(name, got[i], expected, size);
      }
    }
  }
}

TEST_P(MoeOp, AnExpertWithoutTokensHasExactlyNoGradient) {
  Inputs in = inputs({5, 16, 8, 3, 1}, at::kFloat);
  in.experts.fill_(1);
  const auto got = backward(in);
  for (const size_t expert : {0u, 2u}) {
    for (const size_t list : {2u, 5u, 8u}) {
      EXPECT_EQ(got[list + expert].abs().sum().item<float>(), 0.0f);
      EXPECT_NE(got[list + 1].abs().sum().item<float>(), 0.0f);
    }
  }
}

TEST_P(MoeOp, GivesATokenTheSameBitsInEveryBatch) {
  for (const auto dtype : kDtypes) {
    const Inputs in = inputs({150, 96, 80, 3, 2}, dtype);
    const at::Tensor whole = forward(in);
    const auto whole_gradients = backward(in);
    int64_t start = 0;
    for (const int64_t size : {1, 2, 15, 48, 84}) {
      Inputs part = in;
      for (at::Tensor* t : {&part.x, &part.dout, &part.experts, &part.weights}) {
        *t = t->narrow(0, start, size);
      }
      expect_same_bits(forward(part), whole.narrow(0, start, size));
      const auto gradients = backward(part);
      expect_same_bits(gradients[0], whole_gradients[0].narrow(0, start, size));
      expect_same_bits(gradients[1], whole_gradients[1].narrow(0, start, size));
      start += size;
    }
  }
}

TEST_P(MoeOp, DoesNotDependOnTheOrderOfSlots) {
  const Inputs in = inputs({20, 32, 16, 6, 4}, at::kFloat);
  Inputs flipped = in;
  flipped.experts = in.experts.flip(-1);
  flipped.weights = in.weights.flip(-1);
  expect_same_bits(forward(flipped), forward(in));
  expect_same_bits(backward(flipped)[0], backward(in)[0]);
}

TEST_P(MoeOp, AddsGroupsOfExpertsWithTheBitsOfOneCall) {
  for (const auto dtype : kDtypes) {
    const Inputs in = inputs({20, 32, 16, 6, 4}, dtype);
    const at::Tensor sum = at::zeros(in.x.sizes(), in.weights.options());
    for (const auto& [first, last] : {std::pair<int64_t, int64_t>{0, 1}, {1, 4}, {4, 6}}) {
      const at::Tensor outside = in.experts.lt(first).logical_or(in.experts.ge(last));
      const auto group = [&](const std::vector<at::Tensor>& all) {
        return std::vector<at::Tensor>(all.begin() + first, all.begin() + last);
      };
      EXPECT_TRUE(call("moe_add", {sum, in.x, (in.experts - first).masked_fill(outside, -1),
                                   in.weights, group(in.gate), group(in.up), group(in.down)})
                      .empty());
    }
    expect_same_bits(sum.to(dtype), forward(in));
  }
}

TEST_P(MoeOp, HandsBackOfGroupsOfExpertsTheBitsOfOneCall) {
  for (const auto dtype : kDtypes) {
    const Inputs in = inputs({20, 32, 16, 6, 4}, dtype);
    at::Tensor sum = at::zeros(in.x.sizes(), in.weights.options());
    const at::Tensor dweights = at::zeros_like(in.weights);
    const auto whole = backward(in);  // dx, dweights, then each list
    std::vector<at::Tensor> lists[3];
    for (const auto& [first, last] : {std::pair<int64_t, int64_t>{0, 1}, {1, 4}, {4, 6}}) {
      const at::Tensor outside = in.experts.lt(first).logical_or(in.experts.ge(last));
      const auto group = [&](const std::vector<at::Tensor>& all) {
        return std::vector<at::Tensor>(all.begin() + first, all.begin() + last);
      };
      const auto part = call("moe_backward_add",
                             {sum, in.dout, in.x, (in.experts - first).masked_fill(outside, -1),
                              in.weights, group(in.gate), group(in.up), group(in.down)});
      sum = part[0];
      dweights.add_(part[1]);
      for (int64_t list = 0; list < 3; ++list)
        for (int64_t e = 0; e < last - first; ++e)
          lists[list].push_back(part[2 + list * (last - first) + e]);
    }
    expect_same_bits(sum.to(dtype), whole[0]);
    expect_same_bits(dweights, whole[1]);
    size_t at = 2;
    for (const auto& list : lists)
      for (const at::Tensor& gradient : list) expect_same_bits(gradient, whole[at++]);
  }
}

TEST_P(MoeOp, GivesIdleExpertsZerosInThreadsUnderInferenceMode) {
  const c10::InferenceMode no_autograd;
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  Inputs in = inputs({20, 32, 16, 6, 1}, at::kFloat);
  in.experts.zero_();
  const auto gradients = backward(in);
  at::set_num_threads(threads);
  for (size_t list = 0; list < 3; ++list)
    for (size_t e = 1; e < 6; ++e)
      EXPECT_EQ(gradients[2 + list * 6 + e].abs().sum().item<float>(), 0.0f);
}

TEST_P(MoeOp, LeavesOutSlotsWithoutAnExpert) {
  Inputs in = inputs({6, 16, 8, 3, 2}, at::kFloat), weightless = in;
  in.experts.select(1, 0).fill_(-1);
  weightless.weights.select(1, 0).zero_();
  expect_close("moe.out", forward(in), wide(forward(weightless)));
  EXPECT_EQ(backward(in)[1].select(1, 0).abs().sum().item<float>(), 0.0f);
}

TEST_P(MoeOp, TakesInputsThatAreNotContiguous) {
  const Inputs in = inputs({5, 24, 16, 3, 2}, at::kFloat);
  Inputs loose = in;
  for (at::Tensor* t : {&loose.x, &loose.dout, &loose.experts, &loose.weights}) *t = strided(*t);
  for (auto* list : {&loose.gate, &loose.up, &loose.down}) {
    for (at::Tensor& t : *list) t = strided(t);
  }
  expect_same_bits(forward(loose), forward(in));
  const auto got = backward(loose), want = backward(in);
  for (size_t i = 0; i < want.size(); ++i) expect_same_bits(got[i], want[i]);
}

TEST_P(MoeOp, GivesTheSameBitsOnEveryRun) {
  for (const int64_t tokens : {1, 70}) {
    const Inputs in = inputs({tokens, 64, 48, 3, 2}, at::kFloat);
    expect_deterministic([&] {
      auto results = backward(in);
      results.push_back(forward(in));
      return results;
    });
  }
}

TEST_P(MoeOp, RefusesBadInput) {
  const Inputs in = inputs({4, 16, 8, 3, 2}, at::kFloat);
  const auto refused = [&](const std::string& text, const Inputs& bad) {
    expect_refused(text, "moe", {bad.x, bad.experts, bad.weights, bad.gate, bad.up, bad.down});
  };
  Inputs bad = in;
  bad.x = in.x.to(at::kDouble);
  refused("moe: x: expected float32 or bfloat16, got Double", bad);
  bad = in;
  bad.experts = in.experts.to(at::kLong);
  refused("moe: experts: expected Int, got Long", bad);
  bad = in;
  bad.weights = in.weights.narrow(1, 0, 1);
  refused("moe: weights: expected shape [4, 2], got [4, 1]", bad);
  bad = in;
  bad.up.pop_back();
  refused("moe: up: expected 3 experts, got 2", bad);
  bad = in;
  bad.down[1] = in.up[1];
  refused("moe: down: expected shape [16, 8], got [8, 16]", bad);
  bad = in;
  bad.gate[2] = in.gate[2].to(at::kBFloat16);
  refused("moe: gate: expected Float as x, got BFloat16", bad);
  if (!in.x.is_cpu()) return;
  bad = in;
  bad.experts = in.experts + 2;
  refused("moe: experts: expected 0 to 2, got", bad);
}

DSV32_ON_EVERY_BACKEND(MoeOp);

}  // namespace
}  // namespace dsv32::suites
