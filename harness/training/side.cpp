#include "harness/training/side.h"

#include "harness/cases/implementations.h"
#include "harness/cases/threads.h"
#include "harness/training/own_adamw.h"
#include "src/bridge/runtime.h"
#include "src/model/errors.h"
#include "src/training/one_ulp.h"

namespace dsv32::harness {

void set_training_threads(const Case& c, const RunSettings& settings) {
  set_threads(settings.threads > 0 ? settings.threads : threads_for(c));
}

std::function<void(const std::string&)> side_progress(const Case& c, const std::string& side,
                                                      const RunSettings& settings) {
  return [name = c.name, side, settings](const std::string& where) {
    if (settings.interrupted && settings.interrupted()) {
      throw Error(ExitCode::interrupted,
                  {.where = name, .what = side, .expected = "to finish", .got = "a stop"});
    }
    if (settings.progress) settings.progress(name + ": " + side + ": " + where);
  };
}

TrainingSide::TrainingSide(const TrainingJob& job, const training::Recipe& recipe,
                           const SideOptions& options)
    : job_(job),
      recipe_(recipe),
      options_(options),
      synthetic_(job.the_case),
      start_(std::make_unique<training::OneUlpWeights>(synthetic_, options.ulp_seed)) {
  const bool wide = options.dtype == DType::float64;
  trainables_ = std::make_unique<training::FullWeights>(
      job.the_case.config, *start_, wide ? torch::kFloat64 : torch::kFloat32, options.dtype);
  optimizer_ = training::make_adamw(recipe.groups, trainables_->table(), options.bug,
                                    own_adamw(options.impl, options.dtype, options.bug));
  options_.impl.clear();
  use(options.impl);
}

void TrainingSide::use(const std::string& impl) {
  if (impl == options_.impl) return;
  options_.impl = impl;
  trainer_.reset();  // it holds the model
  model_ = make_model(impl, job_.the_case.config, *trainables_);
  trainer_ = std::make_unique<training::Trainer>(
      job_.the_case, recipe_, *model_, *trainables_, *optimizer_,
      training::TrainerOptions{
          .dtype = options_.dtype,
          .dialect = options_.dialect,
          .device = job_.settings.device,
          .bug = options_.bug,
          .progress = side_progress(job_.the_case, options_.name, job_.settings)});
}

void TrainingSide::set_to(const TrainingSide& other) {
  trainables_->table().assign(other.trainables_->table());
  optimizer_->set_state(other.optimizer_->state());
}

}  // namespace dsv32::harness
