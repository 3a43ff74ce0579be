#include "harness/training/step/gradients.h"

#include "harness/cases/implementations.h"
#include "harness/cases/threads.h"
#include "src/bridge/runtime.h"
#include "src/training/trainer.h"

namespace dsv32::harness {
namespace {

int64_t counted_tokens(const Batch& batch) {
  int64_t count = 0;
  for (int64_t i = 0; i < batch.B * batch.S; ++i)
    count += i % batch.S > 0 && batch.labels[static_cast<size_t>(i)] >= 0 ? 1 : 0;
  return count;
}

}  // namespace

std::vector<PartGradients> step_gradients(const Case& c, const StepRecipe& recipe,
                                          const Trace* decisions, int64_t step,
                                          const StepWeights& weights) {
  constexpr int64_t kBatches = 4;  // docs/formats.md 2
  set_threads(threads_for(c));
  const auto model = make_model("reference", c.config, weights);
  const Batch batch = make_batch(c, recipe.memorised ? 0 : step % kBatches);
  std::vector<PartGradients> parts;
  for (int64_t rank = 0; rank < recipe.world; ++rank) {
    const auto [first, last] = training::share_of_rows(batch.B, rank, recipe.world);
    for (int64_t micro = 0; micro < recipe.micro_batches; ++micro) {
      const auto [begin, end] = training::share_of_rows(last - first, micro, recipe.micro_batches);
      const Batch rows = training::slice_rows(batch, first + begin, first + end);
      RunOptions options{.dtype = DType::float64, .objective = recipe.objective, .backward = true};
      const Trace replayed =
          decisions == nullptr ? Trace()
                               : training::slice_decisions(*decisions, first + begin, first + end);
      if (decisions != nullptr) {
        options.feeding = Feeding::forced;
        options.feed = &replayed;
      }
      const Trace run = model->run(rows, options);
      parts.push_back({.rank = rank,
                       .micro = micro,
                       .tokens = counted_tokens(rows),
                       .gradients = weights.gradients(run),
                       .below = weights.below(run)});
    }
  }
  return parts;
}

}  // namespace dsv32::harness
