#include "src/training/trainer.h"

namespace dsv32::training {
namespace {

double scalar_or_zero(const Trace& run, const char* tap) {
  const HostTensor* value = run.find(tap);
  return value == nullptr ? 0 : value->at(0);
}

/// What a step keeps of a run.
bool wanted(const std::string& tap) {
  return tap.rfind("grad.", 0) == 0 || tap == "loss.lm" || tap == "loss.kl" || is_decision(tap);
}

}  // namespace

Trainer::Trainer(const Case& c, Recipe recipe, const Implementation& model, Trainables& trainables,
                 Optimizer& optimizer, TrainerOptions options)
    : case_(c),
      recipe_(std::move(recipe)),
      model_(model),
      trainables_(trainables),
      optimizer_(optimizer),
      options_(std::move(options)) {}

StepRecord Trainer::step(int64_t index, const Trace* decisions) {
  StepRecord record = measure(index, decisions);
  apply(record);
  return record;
}

void Trainer::apply(StepRecord& record) {
  torch::NoGradGuard no_grad;
  if (options_.bug == Bug::gradients_not_zeroed) leave_gradients(record.gradients);
  if (options_.bug == Bug::indexer_tensor_trainable) thaw_one(record.gradients);
  record.grad_norm = optimizer_.step(trainables_.table(), record.gradients);
  if (options_.bug == Bug::decay_frozen) decay_without_gradient(record.gradients);
}

StepRecord Trainer::measure(int64_t index, const Trace* decisions) {
  torch::NoGradGuard no_grad;
  const Batch batch = batch_of(index);
  const auto [first, last] = options_.rows.value_or(std::pair<int64_t, int64_t>{0, batch.B});
  const int64_t count = recipe_.micro_batches;
  // Bug: every micro-batch counts in full.
  const double share =
      options_.bug == Bug::micro_batch_mean ? 1.0 : 1.0 / static_cast<double>(count);
  StepRecord record;
  std::vector<Trace> own;
  for (int64_t i = 0; i < count; ++i) {
    const auto [begin, end] = share_of_rows(last - first, i, count);
    Trace fed;
    if (decisions != nullptr) fed = slice_decisions(*decisions, first + begin, first + end);
    const Trace run_of_rows =
        run(slice_rows(batch, first + begin, first + end), decisions == nullptr ? nullptr : &fed);
    add(run_of_rows, share, record);
    record.loss += scalar_or_zero(run_of_rows, "loss.lm") / static_cast<double>(count);
    record.kl += scalar_or_zero(run_of_rows, "loss.kl") / static_cast<double>(count);
    own.push_back(decisions == nullptr ? slice_decisions(run_of_rows, 0, end - begin) : fed);
  }
  record.decisions = join_decisions(own);
  return record;
}

Batch Trainer::batch_of(int64_t index) const {
  const bool repeat = options_.bug == Bug::batch_repeated && index > 0;
  const int64_t asked = repeat ? index - 1 : index;
  Batch batch = make_batch(case_, recipe_.memorised ? 0 : asked % kBatches);
  if (options_.bug == Bug::prompt_not_masked) batch.labels = batch.input_ids;
  return batch;
}

Trace Trainer::run(const Batch& batch, const Trace* decisions) const {
  RunOptions options{.dtype = options_.dtype,
                     .dialect = options_.dialect,
                     .objective = recipe_.objective,
                     .backward = true,
                     .wanted = wanted,
                     .device = options_.device,
                     .progress = options_.progress};
  if (decisions != nullptr) {
    options.feeding = Feeding::forced;
    options.feed = decisions;
  }
  return model_.run(batch, options);
}

/// Sums `share` times this run's gradients; the first run's are taken as they are where they need
/// no change.
void Trainer::add(const Trace& run, double share, StepRecord& record) const {
  const TensorTable fresh = trainables_.gradients(run);
  for (const std::string& name : fresh.names()) {
    const Tensor part = share == 1.0 ? fresh.at(name) : fresh.at(name) * share;
    const bool first = !record.gradients.has(name);
    record.gradients.put(name, first ? part : record.gradients.at(name) + part);
  }
}

void Trainer::leave_gradients(TensorTable& gradients) {
  for (const std::string& name : gradients.names())
    if (left_over_.has(name)) gradients.put(name, gradients.at(name) + left_over_.at(name));
  left_over_ = gradients.clone();
}

/// A buffer of zeros where there should be none: weight decay alone moves the tensor.
void Trainer::thaw_one(TensorTable& gradients) const {
  const TensorTable& parameters = trainables_.table();
  for (const std::string& name : parameters.names()) {
    if (!is_indexer(name)) continue;
    return gradients.put(name, torch::zeros_like(parameters.at(name)));
  }
}

void Trainer::decay_without_gradient(const TensorTable& gradients) {
  const AdamW& adamw = recipe_.groups.front().adamw;
  for (const std::string& name : trainables_.table().names()) {
    const Tensor value = trainables_.table().at(name);
    if (!gradients.has(name)) value.mul_(1 - adamw.lr * adamw.weight_decay);
  }
}

Snapshot take_snapshot(const Trainables& trainables, const Optimizer& optimizer) {
  torch::NoGradGuard no_grad;
  return {trainables.table().clone(), optimizer.state().clone()};
}

void restore(const Snapshot& snapshot, Trainables& trainables, Optimizer& optimizer) {
  trainables.table().assign(snapshot.parameters);
  optimizer.set_state(snapshot.optimizer);
}

}  // namespace dsv32::training
