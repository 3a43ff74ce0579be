#include "harness/training/lora_checks.h"

#include <cmath>
#include <functional>

#include "harness/judge/compare.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "harness/training/replay.h"
#include "src/bridge/bridge.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

using training::TensorTable;

bool is_a(const std::string& name) { return name.ends_with(".lora_A.weight"); }

/// Counts what is wrong, and remembers the first place.
struct Wrong {
  int64_t count = 0, checked = 0;
  std::string first;

  void add(bool wrong, const std::string& place) {
    ++checked;
    if (wrong && count++ == 0) first = place;
  }
};

Verdict exact_check(const Subject& subject, const std::string& name, const Wrong& wrong,
                    const std::string& basis) {
  Verdict verdict = harness::exact_check(subject, name, static_cast<double>(wrong.count), basis,
                                         wrong.checked, wrong.first);
  if (wrong.checked == 0) verdict.trust = Trust::vacuous;
  return verdict;
}

bool has_value(const TensorTable& gradients, const std::string& name) {
  return gradients.has(name) && gradients.at(name).ne(0).any().item<bool>();
}

RunOptions replaying(const Trace& decisions) {
  return {.feeding = Feeding::forced, .feed = &decisions};
}

HostTensor logits_of(const Trace& run) { return *run.find("logits"); }

RunOptions logits_only(const Trace& decisions) {
  RunOptions options = replaying(decisions);
  options.wanted = [](const std::string& tap) { return tap == "logits"; };
  return options;
}

Verdict judge_no_op(const LoraSide& side, const Batch& batch, const Trace& decisions,
                    const Subject& subject) {
  const HostTensor with = logits_of(side.run(batch, logits_only(decisions)));
  const HostTensor without = logits_of(side.run_base(batch, logits_only(decisions)));
  Wrong wrong;
  for (int64_t i = 0; i < with.numel(); ++i)
    wrong.add(with.at(i) != without.at(i), "logits, element " + std::to_string(i));
  return exact_check(subject, rule_name("lora.no_op"), wrong, "docs/spec.md 2: an exact no-op");
}

/// dA = s B^T dW is zero with B; dB = s dW A^T is not.
Verdict judge_first_gradients(LoraSide& side, const Trace& decisions, const Subject& subject) {
  const TensorTable gradients = side.trainer().measure(0, &decisions).gradients;
  Wrong wrong;
  for (const std::string& name : side.parameters().names())
    wrong.add(has_value(gradients, name) == is_a(name), "grad." + name);
  return exact_check(subject, rule_name("lora.first_gradients"), wrong, "dA is zero, dB is not");
}

/// Adapters of the other loss have no gradient; own ones do.
Verdict judge_alone(const LoraSide& side, const Batch& batch, const Trace& decisions,
                    const Objective& objective, const training::LoraAdapters& adapters,
                    const Subject& subject) {
  RunOptions options = replaying(decisions);
  options.objective = objective;
  options.backward = true;
  options.wanted = [](const std::string& tap) { return tap.starts_with("grad."); };
  const TensorTable gradients = adapters.gradients(side.run(batch, options));
  Wrong wrong;
  bool reached = false;
  for (const std::string& name : adapters.table().names()) {
    const bool own = is_indexer(name) != objective.lm;
    if (own) reached = reached || has_value(gradients, name);
    if (!own) wrong.add(has_value(gradients, name), "grad." + name);
  }
  const std::string name = rule_name(objective.lm ? "lora.lm_alone" : "lora.kl_alone");
  Verdict verdict =
      exact_check(subject, name, wrong, "docs/spec.md 2: the gradient paths never mix");
  if (!reached) verdict.trust = Trust::vacuous;
  if (!reached) verdict.note = "no adapter of its own has a gradient";
  return verdict;
}

HostTensor last_positions(const HostTensor& logits) {
  const int64_t length = logits.shape().at(1);
  const int64_t first = length - std::min(length, kLoraLogitPositions);
  return to_host(to_torch(logits).slice(1, first), logits.dtype());
}

/// B A of one weight in double, by its definition. [rows, in]
class Product {
 public:
  Product(const LoraModule& module, const LoraPlace& place, const TensorTable& table)
      : m_(module),
        place_(place),
        a_(table.at(module.a_name()).accessor<double, 2>()),
        b_(table.at(module.b_name()).accessor<double, 2>()) {}

  double at(int64_t row, int64_t column) const {
    double sum = 0;
    for (int64_t k = 0; k < m_.rank; ++k)
      sum += b_[place_.first_row + row][k * m_.experts + place_.expert] *
             a_[place_.expert * m_.rank + k][column];
    return sum;
  }

 private:
  const LoraModule& m_;
  const LoraPlace& place_;
  torch::TensorAccessor<double, 2> a_, b_;
};

/// Least squares fit of the scale that is in force, and whether the formula holds exactly.
struct Audit {
  double top = 0, bottom = 0;
  bool exact = true;
};

Audit audit(const HostTensor& read, const HostTensor& base, const Product& product, double scale) {
  Audit result;
  const int64_t width = base.shape().at(1);
  for (int64_t i = 0; i < base.numel(); ++i) {
    const double p = product.at(i / width, i % width);
    result.top += (read.at(i) - base.at(i)) * p;
    result.bottom += p * p;
    result.exact = result.exact && read.at(i) == base.at(i) + scale * p;
  }
  return result;
}

}  // namespace

std::vector<Verdict> judge_lora_start(LoraSide& side, const Batch& batch, const Trace& decisions,
                                      const Subject& subject) {
  const Objective lm{.lm = true}, kl{.lm = false, .kl = KlStage::sparse};
  return {judge_no_op(side, batch, decisions, subject),
          judge_first_gradients(side, decisions, subject),
          judge_alone(side, batch, decisions, lm, side.adapters(), subject),
          judge_alone(side, batch, decisions, kl, side.adapters(), subject)};
}

Verdict judge_lora_scale(const TrainingJob& job, const LoraPlan& plan, const Subject& subject) {
  const ModelConfig& config = job.the_case.config;
  const SyntheticWeights source(job.the_case);
  const training::LoraAdapters adapters(config, lora_modules(config, plan.targets), source, source,
                                        torch::kFloat64, job.bug);
  std::map<std::string, const LoraModule*> modules;
  for (const LoraModule& module : adapters.modules()) modules[module.name] = &module;
  Wrong wrong;
  for (const WeightSpec& spec : weight_specs(config)) {
    const std::optional<LoraPlace> place = lora_place(config, spec.name);
    if (!place || modules.count(place->module) == 0) continue;
    const LoraModule& module = *modules.at(place->module);
    const Audit found = audit(adapters.load(spec), source.load(spec),
                              Product(module, *place, adapters.table()), module.scale());
    wrong.add(!found.exact, spec.name + ": scale " + std::to_string(found.top / found.bottom) +
                                " in place of " + std::to_string(module.scale()));
  }
  return exact_check(subject, rule_name("lora.scale"), wrong,
                     "W + alpha / rank B A, exact in float64");
}

LoraLogits lora_logits(LoraSide& side, const Batch& batch, const Trace& decisions,
                       const Trace& merged_decisions) {
  LoraLogits logits;
  logits.adapter = last_positions(logits_of(side.run(batch, logits_only(decisions))));
  side.adapters().merge();
  logits.merged = last_positions(logits_of(side.run(batch, logits_only(merged_decisions))));
  side.adapters().unmerge();
  return logits;
}

std::vector<Verdict> judge_lora_logits(const Case& c, const LoraLogits& judged,
                                       const LoraLogits& oracle, const Subject& subject) {
  const int64_t count = judged.adapter.numel();
  const double apart = relative(judged.merged, judged.adapter);
  return {training_check(subject, end_name("logits.adapter"),
                         by_limit("lora.logits", {.config = c.config_name},
                                  relative(judged.adapter, oracle.adapter)),
                         count),
          training_check(subject, end_name("logits.merged"),
                         by_limit("lora.logits", {.config = c.config_name},
                                  relative(judged.merged, oracle.merged)),
                         count),
          training_check(subject, rule_name("lora.merge"),
                         by_limit("pair.relative", {.dtype = DType::float32}, apart), count)};
}

Verdict judge_lora_base(LoraSide& side, const Case& c, const WeightSource& base,
                        const Subject& subject) {
  torch::NoGradGuard no_grad;
  for (const std::string& name : side.parameters().names())
    if (!is_a(name)) side.adapters().table().at(name).zero_();
  Wrong wrong;
  for (const WeightSpec& spec : weight_specs(c.config))
    wrong.add(!side.adapters().load(spec).identical(base.load(spec)), spec.name);
  return exact_check(subject, rule_name("lora.base"), wrong,
                     "frozen: the same bits after training, merging and unmerging");
}

}  // namespace dsv32::harness
