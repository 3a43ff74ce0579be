#include "harness/training/sharded/run.h"

#include <signal.h>

#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>

#include "harness/cases/implementations.h"
#include "harness/training/side.h"
#include "src/bridge/bridge.h"
#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/model/lora.h"
#include "src/model/philox.h"
#include "src/training/lora.h"
#include "src/training/one_ulp.h"
#include "src/training/zero2.h"

namespace dsv32::harness {
namespace {

using training::Group;
using training::Tensor;
using training::TensorTable;
using training::World;

constexpr double kClip = 1.0;

std::vector<Group> groups_of(ShardedKind kind) {
  switch (kind) {
    case ShardedKind::all:
      return {{.name = "all", .clip = kClip}};
    case ShardedKind::frozen:
      return {{.name = "all", .clip = kClip, .takes = [](const std::string& name) {
                 return !is_indexer(name);
               }}};
    case ShardedKind::lora:
      return {{.name = "lm",
               .adamw = {.lr = 1e-4},
               .clip = kClip,
               .takes = [](const std::string& name) { return !is_indexer(name); }},
              {.name = "kl", .takes = [](const std::string& name) { return is_indexer(name); }}};
  }
  return {};
}

/// Of every bit of every parameter, for equality alone.
int64_t fingerprint(const TensorTable& table) {
  constexpr uint64_t kPrime = 1099511628211u;
  uint64_t hash = 14695981039346656037u;  // FNV-1a over 32-bit words
  for (const std::string& name : table.names()) {
    const Tensor values = table.at(name).contiguous();
    const auto* words = reinterpret_cast<const unsigned char*>(values.data_ptr());
    const size_t size = values.nbytes();
    for (size_t i = 0; i + sizeof(uint32_t) <= size; i += sizeof(uint32_t)) {
      uint32_t word;
      std::memcpy(&word, words + i, sizeof word);
      hash = (hash ^ word) * kPrime;
    }
  }
  return static_cast<int64_t>(hash);
}

/// One row of numbers from every rank: [rank][value].
template <typename T>
std::vector<std::vector<T>> gather(World& world, const std::vector<T>& own) {
  const int64_t count = std::ssize(own);
  Tensor share = torch::tensor(own, torch::CppTypeToScalarType<T>::value).to(world.device());
  Tensor whole = torch::empty({world.size() * count}, share.options());
  world.all_gather(whole, share);
  whole = whole.cpu();
  std::vector<std::vector<T>> rows(world.size());
  for (int rank = 0; rank < world.size(); ++rank)
    rows[rank].assign(whole.data_ptr<T>() + rank * count, whole.data_ptr<T>() + (rank + 1) * count);
  return rows;
}

/// Decisions of all ranks in the order of the rows; ranks may have one row more or less.
Trace gather_decisions(World& world, const Trace& own, int64_t rows) {
  Trace whole;
  const int64_t most = (rows + world.size() - 1) / world.size();
  for (const std::string& name : own.names()) {
    const Tensor values = to_torch(*own.find(name));
    std::vector<int64_t> shape = values.sizes().vec();
    const int64_t mine = shape[0];
    shape[0] = most;
    Tensor share = torch::full(shape, -1, values.options());
    share.narrow(0, 0, mine).copy_(values);
    share = share.to(world.device());
    shape[0] = most * world.size();
    Tensor padded = torch::empty(shape, share.options());
    world.all_gather(padded, share);
    std::vector<Tensor> parts;
    for (int rank = 0; rank < world.size(); ++rank) {
      const auto [first, last] = training::share_of_rows(rows, rank, world.size());
      parts.push_back(padded.cpu().narrow(0, rank * most, last - first));
    }
    whole.put(name, to_host(torch::cat(parts), own.find(name)->dtype()));
  }
  return whole;
}

void plant_fault(const ShardedPlan& plan, int64_t step) {
  if (plan.fault.empty() || step != plan.fault_step) return;
  if (plan.fault == "kill") raise(SIGKILL);
  if (plan.fault == "stop") raise(SIGSTOP);
  if (plan.fault == "hang") std::this_thread::sleep_for(std::chrono::hours(1));
  if (plan.fault == "throw") throw std::runtime_error("a planted error");
}

int64_t counted_tokens(const Batch& batch, int64_t first, int64_t last) {
  int64_t count = 0;
  for (int64_t row = first; row < last; ++row)
    for (int64_t s = 1; s < batch.S; ++s) count += batch.labels[row * batch.S + s] != kIgnoredLabel;
  return count;
}

/// Bug::token_mean: this rank's mean loss counts by its tokens, not as one of `size` means.
void weigh_by_tokens(const World& world, const Case& c, int64_t step, TensorTable& gradients) {
  const Batch batch = make_batch(c, step % kBatches);
  const auto [first, last] = training::share_of_rows(c.B, world.rank(), world.size());
  const double share = static_cast<double>(counted_tokens(batch, first, last)) /
                       static_cast<double>(counted_tokens(batch, 0, c.B));
  for (const std::string& name : gradients.names())
    gradients.put(name, gradients.at(name) * (share * world.size()));
}

void check_fits(const World& world, const ShardedPlan& plan, const Case& c) {
  if (world.size() != plan.ranks) {
    throw Error(ExitCode::usage, {.where = "sharded world",
                                  .what = "ranks",
                                  .expected = std::to_string(plan.ranks),
                                  .got = std::to_string(world.size())});
  }
  const int64_t parts = world.size() * plan.accumulation;
  if (parts <= c.B) return;
  throw Error(ExitCode::usage,
              {.where = "case " + c.name,
               .what = "too few rows for this world",
               .expected = "at most " + std::to_string(c.B) + " ranks times micro-batches",
               .got = std::to_string(parts)});
}

/// Integers in [-8, 8).
Tensor integers(const std::string& name, int64_t size) {
  Tensor values = torch::empty({size});
  const PhiloxStream stream(0, name);
  float* to = values.data_ptr<float>();
  for (int64_t i = 0; i < size; ++i)
    to[i] = static_cast<float>(stream.lane16(static_cast<uint64_t>(i)) & 15) - 8;
  return values;
}

}  // namespace

ShardedPupil::ShardedPupil(const ShardedPlan& plan, const std::string& impl, DType dtype)
    : synthetic(io::find_case(plan.case_name)) {
  const ModelConfig& config = io::find_case(plan.case_name).config;
  const torch::ScalarType master = dtype == DType::float64 ? torch::kFloat64 : torch::kFloat32;
  start = std::make_unique<training::OneUlpWeights>(synthetic, plan.perturbation_seed);
  if (plan.kind == ShardedKind::lora) {
    adapter_start = std::make_unique<training::ZeroB>(io::find_case(plan.case_name).seed);
    trainables = std::make_unique<training::LoraAdapters>(config, lora_modules(config), *start,
                                                          *adapter_start, master);
  } else {
    trainables = std::make_unique<training::FullWeights>(config, *start, master, dtype);
  }
  model = make_model(impl, config, *trainables);
}

training::Recipe sharded_recipe(const ShardedPlan& plan, int64_t micro_batches) {
  const bool with_kl = plan.kind != ShardedKind::all;
  return {.name = "sharded",
          .objective = {.kl = with_kl ? KlStage::sparse : KlStage::none},
          .groups = groups_of(plan.kind),
          .steps = plan.steps,
          .micro_batches = micro_batches};
}

ShardedRun run_rank(World& world, const ShardedPlan& plan) {
  const Case& c = io::find_case(plan.case_name);
  check_fits(world, plan, c);
  ShardedPupil pupil(plan, plan.impl);
  const training::Recipe recipe = sharded_recipe(plan, plan.accumulation);
  TensorTable& table = pupil.trainables->table();
  const auto optimizer = training::make_zero2(recipe.groups, table, world, plan.bug);
  training::Trainer trainer(c, recipe, *pupil.model, *pupil.trainables, *optimizer,
                            {.device = plan.device,
                             .bug = plan.bug,
                             .rows = training::share_of_rows(c.B, world.rank(), world.size())});
  ShardedRun run;
  for (int64_t step = 0; step < plan.steps; ++step) {
    world.set_step(step);
    plant_fault(plan, step);
    training::StepRecord record = trainer.measure(step);
    if (plan.bug == training::Bug::token_mean) weigh_by_tokens(world, c, step, record.gradients);
    trainer.apply(record);
    std::vector<double> losses;
    for (const auto& row : gather<double>(world, {record.loss})) losses.push_back(row[0]);
    run.loss.push_back(losses);
    run.norms.push_back(gather<double>(world, record.grad_norm));
    std::vector<int64_t> prints;
    for (const auto& row : gather<int64_t>(world, {fingerprint(table)})) prints.push_back(row[0]);
    run.fingerprints.push_back(prints);
    run.decisions.push_back(gather_decisions(world, record.decisions, c.B));
    TensorTable mean = optimizer->mean_gradients();
    if (world.rank() != 0) continue;
    run.gradients.push_back(std::move(mean));
    run.parameters.push_back(table.clone());
  }
  for (const auto& row : gather<int64_t>(world, {optimizer->state_bytes()}))
    run.state_bytes.push_back(row[0]);
  for (const auto& row : gather<int64_t>(world, {integer_fingerprint(world, plan)}))
    run.integer_fingerprints.push_back(row[0]);
  return run;
}

int64_t integer_fingerprint(World& world, const ShardedPlan& plan) {
  constexpr int64_t kParts = 24, kSteps = 3;
  constexpr int64_t kElements = int64_t{1} << 16;
  TensorTable table;
  int64_t elements = 0;
  for (const WeightSpec& spec : weight_specs(io::find_case(plan.case_name).config)) {
    const int64_t size = numel(spec.shape);
    if (is_buffer(spec.name) || elements + size > kElements) continue;
    elements += size;
    table.put(spec.name, integers("start." + spec.name, size));
  }
  const std::vector<Group> groups = {{.name = "all", .clip = kClip}};
  const auto optimizer = training::make_zero2(groups, table, world, plan.bug);
  const auto [first, last] = training::share_of_rows(kParts, world.rank(), world.size());
  for (int64_t step = 0; step < kSteps; ++step) {
    TensorTable gradients;
    for (const std::string& name : table.names()) {
      Tensor sum = torch::zeros_like(table.at(name));
      const std::string stream = "grad." + std::to_string(step) + "." + name + ".";
      for (int64_t part = first; part < last; ++part)
        sum.add_(integers(stream + std::to_string(part), sum.numel()));
      // Mean over ranks = sum over parts: an integer, whatever the world.
      gradients.put(name, sum * static_cast<double>(world.size()));
    }
    optimizer->step(table, gradients);
  }
  return fingerprint(table);
}

}  // namespace dsv32::harness
