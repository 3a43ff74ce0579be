#include "harness/training/merge_check.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "harness/judge/limits.h"
#include "src/model/fp8.h"
#include "src/training/lora.h"

namespace dsv32::harness {
namespace {

using training::Bug;
using Values = std::vector<double>;

/// The factors of an adapter by their names.
class Factors : public WeightSource {
 public:
  explicit Factors(const io::Adapter& adapter) : adapter_(adapter) {}
  HostTensor load(const WeightSpec& spec) const override { return adapter_.tensors.at(spec.name); }
  std::string identity() const override { return "adapter"; }

 private:
  const io::Adapter& adapter_;
};

/// A merge as it should not be.
struct Fault {
  const char* name;
  const char* words;
  Bug bug;
};
constexpr Fault kFaults[] = {
    {"merge-scale-alpha", "the product is multiplied by alpha, not by alpha / rank",
     Bug::lora_scale_alpha},
    {"merge-twice", "the adapter is merged twice", Bug::lora_merge_twice},
    {"merge-transposed", "the product B A is transposed", Bug::lora_transposed},
    {"merge-other-projection", "gate_proj has up_proj's adapter, and up_proj gate_proj's",
     Bug::lora_wrong_projection},
    {"merge-expert-columns",
     "an expert's part of B is taken for a block of columns, where it is every E-th one",
     Bug::lora_expert_columns},
    {"merge-expert-halves", "gate_proj has up_proj's half of the fused adapter, and the other way",
     Bug::lora_expert_halves},
};

double e4m3(double value) { return e4m3_to_float(float_to_e4m3(static_cast<float>(value))); }

/// Number of its block for each element.
double scale_at(const Fp8Matrix& matrix, int64_t i) {
  const int64_t columns = matrix.codes.shape()[1];
  const int64_t blocks = matrix.scales.shape()[1];
  return matrix.scales.at(i / columns / matrix.block_rows * blocks +
                          i % columns / matrix.block_columns);
}

/// One adapted tensor: the base's values w, what should be there m, what is there.
class MergedTensor {
 public:
  MergedTensor(const WeightSpec& spec, const WeightSource& base, const WeightSource& merged)
      : spec_(spec),
        base_(base.load(spec).to_doubles()),
        merged_(merged.load(spec).to_doubles()),
        base_fp8_(base.load_fp8(spec)),
        merged_fp8_(merged.load_fp8(spec)) {}

  const Values& base() const { return base_; }

  /// As the merged checkpoint would store these values.
  Values stored(const Values& values) const {
    Values out = values;
    for (size_t i = 0; i < out.size(); ++i) {
      if (!merged_fp8_) continue;
      const double scale = scale_at(*merged_fp8_, static_cast<int64_t>(i));
      out[i] = e4m3(values[i] / scale) * scale;
    }
    return out;
  }

  /// The delta of these values that the merged tensor has, in units of theirs.
  double kept(const Values& values) const { return along(values, merged_); }

  /// Rounding makes it differ from `values` by no more: each element by one number of its type, all
  /// together in no direction.
  bool is(const Values& values) const {
    const Values right = stored(values);
    for (size_t i = 0; i < right.size(); ++i)
      if (!(std::fabs(merged_[i] - right[i]) <= allowed(i, values[i]))) return false;
    return std::fabs(kept(values) - along(values, right)) <= limit_of("merge.kept");
  }

  /// Squared distance of the merged tensor from these values, stored as it is or as they are.
  double distance(const Values& values) const {
    double sum = 0;
    for (size_t i = 0; i < values.size(); ++i)
      sum += (merged_[i] - values[i]) * (merged_[i] - values[i]);
    return sum;
  }

  /// The adapter added to codes: under the base's scales, or to what is taken for values.
  std::optional<Values> on_codes(const Values& right, bool scaled) const {
    if (!base_fp8_) return std::nullopt;
    Values out = right;
    for (size_t i = 0; i < out.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      const double code = e4m3_to_float(base_fp8_->codes.data<uint8_t>()[i]);
      const double sum = code + (right[i] - base_[i]);
      out[i] = scaled ? e4m3(sum) * scale_at(*base_fp8_, at) : sum;
    }
    return out;
  }

  /// New codes that are read with the scales of the base.
  std::optional<Values> under_old_scales(const Values& right, const Fp8Config& format) const {
    if (!base_fp8_) return std::nullopt;
    const Fp8Matrix fresh =
        quantized(HostTensor::from_doubles(DType::float32, spec_.shape, right), format);
    Values out = right;
    for (size_t i = 0; i < out.size(); ++i)
      out[i] = static_cast<double>(e4m3_to_float(fresh.codes.data<uint8_t>()[i])) *
               scale_at(*base_fp8_, static_cast<int64_t>(i));
    return out;
  }

 private:
  double along(const Values& values, const Values& of) const {
    double product = 0, size = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const double delta = values[i] - base_[i];
      product += (of[i] - base_[i]) * delta;
      size += delta * delta;
    }
    return size > 0 ? product / size : 1;
  }

  /// Beside the number of its own type, a few roundings of the bfloat16 that merges are made in.
  double allowed(size_t i, double value) const {
    const double largest = std::max(std::fabs(value), std::fabs(base_[i]));
    const double sums = limit_of("merge.roundings") * ulp_at(largest, DType::bfloat16) / 2;
    if (!merged_fp8_) return sums;
    const double scale = scale_at(*merged_fp8_, static_cast<int64_t>(i));
    constexpr double kSmallestNormal = 1.0 / 64, kMantissa = 8;
    const double code = std::max(std::fabs(value) / scale, kSmallestNormal);
    return sums + std::ldexp(1 / kMantissa, std::ilogb(code)) * scale;
  }

  WeightSpec spec_;
  Values base_, merged_;
  std::optional<Fp8Matrix> base_fp8_, merged_fp8_;
};

class MergeCheck {
 public:
  MergeCheck(const ModelConfig& config, const io::Adapter& adapter, const WeightSource& base,
             const WeightSource& merged)
      : config_(config),
        adapter_(adapter),
        base_(base),
        merged_(merged),
        right_(source(Bug::none)) {
    for (const LoraModule& module : adapter.modules) modules_.insert(module.name);
  }

  MergeReport run(const std::function<void(const std::string&)>& progress) {
    for (const WeightSpec& spec : weight_specs(config_)) {
      if (progress) progress(spec.name);
      const auto place = lora_place(config_, spec.name);
      place&& modules_.contains(place->module) ? check_adapted(spec) : check_other(spec);
    }
    report_.kept = adds_ > 0 ? kept_ / adds_ : 1;
    return std::move(report_);
  }

 private:
  std::unique_ptr<training::LoraAdapters> source(Bug bug) const {
    auto adapters = std::make_unique<training::LoraAdapters>(
        config_, adapter_.modules, base_, Factors(adapter_), torch::kFloat64, bug);
    if (bug == Bug::lora_merge_twice) adapters->merge();
    return adapters;
  }

  /// Made when it is first asked for.
  const WeightSource& wrong_source(Bug bug) {
    auto& made = wrong_[bug];
    if (made == nullptr) made = source(bug);
    return *made;
  }

  void check_other(const WeightSpec& spec) {
    ++report_.others;
    if (merged_.load(spec).to_doubles() != base_.load(spec).to_doubles())
      report_.changed.push_back(spec.name);
  }

  void check_adapted(const WeightSpec& spec) {
    ++report_.adapted;
    const MergedTensor tensor(spec, base_, merged_);
    const Values right = right_->load(spec).to_doubles();
    double adds = 0;
    for (size_t i = 0; i < right.size(); ++i)
      adds += (right[i] - tensor.base()[i]) * (right[i] - tensor.base()[i]);
    const double kept = tensor.kept(right);
    adds_ += adds;
    kept_ += kept * adds;
    if (tensor.is(right)) return;
    WrongMerge wrong{.tensor = spec.name, .kept = kept};
    explain(spec, tensor, right, wrong);
    report_.wrong.push_back(std::move(wrong));
  }

  /// The fault whose values are nearest, if they are those that are there.
  void explain(const WeightSpec& spec, const MergedTensor& tensor, const Values& right,
               WrongMerge& wrong) {
    double least = limit_of("merge.named") * tensor.distance(tensor.stored(right));
    const auto offer = [&](const std::optional<Values>& values, const char* name,
                           const char* words) {
      if (!values) return;
      const double distance =
          std::min(tensor.distance(*values), tensor.distance(tensor.stored(*values)));
      if (!(distance <= least)) return;
      least = distance;
      wrong.name = name;
      wrong.words = words;
    };
    offer(tensor.base(), "not-merged", "it is the base's: nothing is merged");
    offer(tensor.on_codes(right, true), "merge-on-codes",
          "the adapter is added to the FP8 codes: round(code + delta), under the base's scales");
    offer(tensor.on_codes(right, false), "merge-on-codes",
          "the adapter is added to the FP8 codes, which are taken for values: code + delta");
    if (const auto format = base_.fp8())
      offer(tensor.under_old_scales(right, *format), "merge-scales-of-base",
            "the codes are those of the merged weight, the scales still those of the base");
    for (const Fault& fault : kFaults)
      offer(wrong_source(fault.bug).load(spec).to_doubles(), fault.name, fault.words);
  }

  const ModelConfig& config_;
  const io::Adapter& adapter_;
  const WeightSource &base_, &merged_;
  std::unique_ptr<training::LoraAdapters> right_;
  std::map<Bug, std::unique_ptr<training::LoraAdapters>> wrong_;
  std::set<std::string> modules_;
  MergeReport report_;
  double adds_ = 0, kept_ = 0;
};

}  // namespace

MergeReport check_merge(const ModelConfig& config, const io::Adapter& adapter,
                        const WeightSource& base, const WeightSource& merged,
                        const std::function<void(const std::string&)>& progress) {
  return MergeCheck(config, adapter, base, merged).run(progress);
}

}  // namespace dsv32::harness
