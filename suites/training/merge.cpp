// Checkpoints that an adapter was merged into, in bfloat16 and in FP8: right ones pass, each way of
// getting it wrong is named.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <set>

#include "harness/judge/limits.h"
#include "harness/training/merge_check.h"
#include "src/io/io.h"
#include "src/model/fp8.h"

namespace dsv32::suites {
namespace {

using harness::MergeReport;
using Values = std::vector<double>;

/// One with FP8 weights in blocks of 16 x 16, no size a multiple of them.
Case fp8_case() { return io::find_case("tiny-fp8"); }

/// A of docs/formats.md 1, B times `size`: other than zero.
io::Adapter adapter_of(const Case& c, double size) {
  const SyntheticWeights synthetic(c.seed);
  io::Adapter adapter{.modules = lora_modules(c.config, {.experts = true})};
  for (const LoraModule& m : adapter.modules) {
    adapter.tensors[m.a_name()] = synthetic.load({m.a_name(), m.a_shape()});
    Values b = synthetic.load({m.b_name(), m.b_shape()}).to_doubles();
    for (double& value : b) value *= size;
    adapter.tensors[m.b_name()] = HostTensor::from_doubles(DType::float32, m.b_shape(), b);
  }
  return adapter;
}

/// alpha / r B A of one tensor by the formulas of docs/formats.md 11.
Values delta_of(const Case& c, const io::Adapter& adapter, const WeightSpec& spec) {
  const auto place = lora_place(c.config, spec.name);
  for (const LoraModule& m : adapter.modules) {
    if (!place || m.name != place->module) continue;
    const HostTensor &a = adapter.tensors.at(m.a_name()), &b = adapter.tensors.at(m.b_name());
    Values delta;
    for (int64_t row = 0; row < spec.shape[0]; ++row)
      for (int64_t column = 0; column < m.in; ++column) {
        double sum = 0;
        for (int64_t r = 0; r < m.rank; ++r)
          sum +=
              b.at((place->first_row + row) * m.rank * m.experts + r * m.experts + place->expert) *
              a.at((place->expert * m.rank + r) * m.in + column);
        delta.push_back(m.scale() * sum);
      }
    return delta;
  }
  return {};
}

/// What a merging program makes of one adapted tensor of the base.
struct Made {
  HostTensor value;
  std::optional<Fp8Matrix> fp8;
};
using Merging = std::function<Made(const WeightSpec&, const Fp8Matrix&, const Values& delta)>;

class Merged : public WeightSource {
 public:
  Merged(const Case& c, const WeightSource& base, const io::Adapter& adapter,
         const Merging& merging)
      : base_(base) {
    for (const WeightSpec& spec : weight_specs(c.config)) {
      const Values delta = delta_of(c, adapter, spec);
      const auto fp8 = base.load_fp8(spec);
      if (delta.empty()) continue;
      if (fp8) {
        made_[spec.name] = merging(spec, *fp8, delta);
      } else {
        Values sum = base.load(spec).to_doubles();
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += delta[i];
        made_[spec.name] = {HostTensor::from_doubles(DType::bfloat16, spec.shape, sum), {}};
      }
    }
  }
  HostTensor load(const WeightSpec& spec) const override {
    const auto found = made_.find(spec.name);
    return found == made_.end() ? base_.load(spec) : found->second.value;
  }
  std::optional<Fp8Matrix> load_fp8(const WeightSpec& spec) const override {
    const auto found = made_.find(spec.name);
    return found == made_.end() ? base_.load_fp8(spec) : found->second.fp8;
  }
  std::string identity() const override { return "merged"; }

 private:
  const WeightSource& base_;
  std::map<std::string, Made> made_;
};

MergeReport judged(double size, const Merging& merging) {
  const Case c = fp8_case();
  const SyntheticWeights base(c);
  const io::Adapter adapter = adapter_of(c, size);
  return harness::check_merge(c.config, adapter, base, Merged(c, base, adapter, merging));
}

HostTensor sum_of(const WeightSpec& spec, const Fp8Matrix& base, const Values& delta, DType dtype) {
  Values sum = dequantized(base).to_doubles();
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += delta[i];
  return HostTensor::from_doubles(dtype, spec.shape, sum);
}

Made in_fp8(const Fp8Matrix& matrix) { return {dequantized(matrix), matrix}; }

/// Dequantised, added to in a type, quantised anew with scales of its own.
Merging right_merge(DType dtype) {
  return [dtype](const WeightSpec& spec, const Fp8Matrix& base, const Values& delta) {
    return in_fp8(quantized(sum_of(spec, base, delta, dtype).cast(DType::float32),
                            *SyntheticWeights(fp8_case()).fp8()));
  };
}

/// round(code + delta), scales as they were.
Made on_codes(const WeightSpec&, const Fp8Matrix& base, const Values& delta) {
  Fp8Matrix matrix = base;
  matrix.codes = HostTensor(DType::uint8, base.codes.shape());
  for (size_t i = 0; i < delta.size(); ++i) {
    const float code = e4m3_to_float(base.codes.data<uint8_t>()[i]);
    matrix.codes.data<uint8_t>()[i] = float_to_e4m3(code + static_cast<float>(delta[i]));
  }
  return in_fp8(matrix);
}

TEST(SelfMerge, RightMergesPass) {
  for (const double size : {1.0, 16.0}) {
    const MergeReport fp8 = judged(size, right_merge(DType::bfloat16));
    EXPECT_TRUE(fp8.good()) << fp8.wrong.front().tensor << " " << fp8.wrong.front().kept;
    const MergeReport wide =
        judged(size, [](const WeightSpec& spec, const Fp8Matrix& base, const Values& delta) {
          return Made{sum_of(spec, base, delta, DType::bfloat16), {}};
        });
    EXPECT_TRUE(wide.good());
    EXPECT_GT(fp8.adapted, 20);
    EXPECT_EQ(fp8.adapted + fp8.others, std::ssize(weight_specs(fp8_case().config)));
    EXPECT_LE(std::fabs(wide.kept - 1), harness::limit_of("merge.kept"));
    std::printf("B x %g: kept %.3f of it in FP8, %.3f in bfloat16\n", size, fp8.kept, wide.kept);
  }
}

/// FP8 tensors are all wrong, and all for this reason.
void expect_named(const MergeReport& report, const std::string& name, const std::string& words) {
  std::set<std::string> names;
  for (const harness::WrongMerge& wrong : report.wrong) {
    names.insert(wrong.name);
    EXPECT_NE(wrong.words.find(words), std::string::npos) << wrong.tensor << " " << wrong.words;
  }
  EXPECT_EQ(names, std::set<std::string>{name});
  EXPECT_GT(report.wrong.size(), 10U);
  EXPECT_TRUE(report.changed.empty());
  std::printf("%-24s %zu of %lld tensors, kept %.3g\n", name.c_str(), report.wrong.size(),
              static_cast<long long>(report.adapted), report.kept);
}

TEST(SelfMerge, AnAdapterAddedToCodesIsNamed) {
  expect_named(judged(16, on_codes), "merge-on-codes", "round(code + delta)");
  const auto as_values = [](const WeightSpec& spec, const Fp8Matrix& base, const Values& delta) {
    Fp8Matrix codes = base;
    codes.scales = HostTensor::from_doubles(DType::float32, base.scales.shape(),
                                            Values(static_cast<size_t>(base.scales.numel()), 1));
    return Made{sum_of(spec, codes, delta, DType::bfloat16), {}};
  };
  expect_named(judged(16, as_values), "merge-on-codes", "taken for values");
}

TEST(SelfMerge, ScalesOfTheBaseAreNamed) {
  const auto old_scales = [](const WeightSpec& spec, const Fp8Matrix& base, const Values& delta) {
    Fp8Matrix matrix = *right_merge(DType::float32)(spec, base, delta).fp8;
    matrix.scales = base.scales;
    return in_fp8(matrix);
  };
  const MergeReport report = judged(16, old_scales);
  expect_named(report, "merge-scales-of-base", "still those of the base");
}

TEST(SelfMerge, ABaseThatWasNotMergedIsNamed) {
  expect_named(judged(16, [](const WeightSpec&, const Fp8Matrix& base,
                             const Values&) { return in_fp8(base); }),
               "not-merged", "nothing is merged");
}

TEST(SelfMerge, AWrongScaleAndADoubleMergeAreNamed) {
  for (const auto& [factor, name] : {std::pair(8.0, "merge-scale-alpha"), {2.0, "merge-twice"}}) {
    const auto more = [factor = factor](const WeightSpec& spec, const Fp8Matrix& base,
                                        Values delta) {
      for (double& value : delta) value *= factor;
      return right_merge(DType::float32)(spec, base, delta);
    };
    expect_named(judged(16, more), name, "");
  }
}

TEST(SelfMerge, WeightsWithoutAnAdapterKeepTheirBits) {
  const Case c = fp8_case();
  const SyntheticWeights base(c);
  Case edited = c;
  edited.edits.push_back({.name = "model.norm.weight", .row = 3, .scale = 2});
  const SyntheticWeights other(edited);
  const io::Adapter adapter = adapter_of(c, 16);
  const MergeReport report = harness::check_merge(
      c.config, adapter, base, Merged(c, other, adapter, right_merge(DType::float32)));
  EXPECT_EQ(report.changed, std::vector<std::string>{"model.norm.weight"});
  EXPECT_TRUE(report.wrong.empty());
}

}  // namespace
}  // namespace dsv32::suites
