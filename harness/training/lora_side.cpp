#include "harness/training/lora_side.h"

#include "harness/cases/implementations.h"
#include "harness/training/own_adamw.h"
#include "src/training/one_ulp.h"

namespace dsv32::harness {
namespace {

using training::Bug;

bool is_lm(const std::string& parameter) { return !is_indexer(parameter); }

torch::ScalarType master_of(DType dtype) {
  return dtype == DType::float64 ? torch::kFloat64 : torch::kFloat32;
}

}  // namespace

HostTensor ResidentWeights::load(const WeightSpec& spec) const {
  const std::lock_guard lock(mutex_);
  HostTensor& kept = kept_[spec.name];
  if (!kept.defined()) kept = source_->load(spec);
  return kept;
}

training::Recipe lora_recipe(const LoraPlan& plan, Bug bug) {
  constexpr double kLmRate = 1e-4, kKlRate = 1e-3;
  const double kl_rate = bug == Bug::lora_one_lr ? kLmRate : kKlRate;
  const KlStage stage = bug == Bug::lora_placeholder_kl ? KlStage::none : KlStage::sparse;
  return {.name = plan.golden,
          .objective = {.lm = true, .kl = stage},
          .groups = {{.name = "lm", .adamw = {.lr = kLmRate}, .takes = is_lm},
                     {.name = "kl", .adamw = {.lr = kl_rate}, .takes = is_indexer}},
          .steps = plan.steps};
}

LoraSide::LoraSide(const TrainingJob& job, const LoraPlan& plan, const SideOptions& options)
    : options_(options),
      device_(job.settings.device),
      config_(job.the_case.config),
      synthetic_(std::make_unique<SyntheticWeights>(job.the_case)) {
  if (options.bug == Bug::lora_kl_leak) options_.dialect.kl.q_latent_detached = false;
  base_ = std::make_unique<ResidentWeights>(
      std::make_unique<training::OneUlpWeights>(*synthetic_, options.ulp_seed));
  const training::ZeroB start(job.the_case.seed);
  adapters_ =
      std::make_unique<training::LoraAdapters>(config_, lora_modules(config_, plan.targets), *base_,
                                               start, master_of(options.dtype), options.bug);
  model_ = make_model(options_.impl, config_, *adapters_);
  const training::Recipe recipe = lora_recipe(plan, options.bug);
  optimizer_ = training::make_adamw(recipe.groups, adapters_->table(), options.bug,
                                    own_adamw(options.impl, options.dtype, options.bug));
  trainer_ = std::make_unique<training::Trainer>(
      job.the_case, recipe, *model_, *adapters_, *optimizer_,
      training::TrainerOptions{
          .dtype = options_.dtype,
          .dialect = options_.dialect,
          .device = device_,
          .bug = options_.bug,
          .progress = side_progress(job.the_case, options.name, job.settings)});
}

RunOptions LoraSide::with_side(RunOptions options) const {
  options.dtype = options_.dtype;
  options.dialect = options_.dialect;
  options.device = device_;
  return options;
}

Trace LoraSide::run(const Batch& batch, const RunOptions& options) const {
  return model_->run(batch, with_side(options));
}

Trace LoraSide::run_base(const Batch& batch, const RunOptions& options) const {
  return make_model(options_.impl, config_, *base_)->run(batch, with_side(options));
}

void LoraSide::set_to(const training::Snapshot& state) {
  training::restore(state, *adapters_, *optimizer_);
}

}  // namespace dsv32::harness
