#include "harness/training/step/factors.h"

#include <cstdlib>

#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"

namespace dsv32::harness {
namespace {

using training::Bug;

constexpr char kNotReduced[] = "factor-not-reduced";

struct Misplaced {
  Bug bug;
  const char* name;
  const char* words;
};
constexpr Misplaced kMisplaced[] = {
    {Bug::lora_wrong_projection, "factor-of-other-projection",
     "the adapters of gate_proj and up_proj have each other's gradients"},
    {Bug::lora_expert_columns, "factor-expert-columns",
     "an expert's part of B is taken for a block of columns, where it is every E-th one"},
    {Bug::lora_expert_halves, "factor-expert-halves",
     "the halves of gate_up_proj, gate and up, are exchanged in B"},
    {Bug::lora_transposed, "factor-transposed", "the product B A is transposed"},
};

/// The gradients of these factors by `of`, of all others as they are.
template <typename Gradients>
std::vector<Parts> replaced(const StepEvidence& evidence, const std::set<std::string>& failing,
                            size_t steps, const Gradients& of) {
  std::vector<Parts> all;
  for (size_t t = 0; t < steps; ++t) {
    const StepEvidence::Step& step = evidence.steps()[t];
    all.push_back(step.parts);
    for (PartGradients& part : all.back())
      for (auto& [name, values] : of(part.below, step.weights))
        if (failing.contains(name)) part.gradients[name] = values;
  }
  return all;
}

/// The number of ranks, where the candidate says it; else numbers that are usual.
std::vector<int64_t> worlds(const StepEvidence& evidence) {
  const auto& metadata = evidence.candidate().trace.metadata;
  const auto said = metadata.find("world");
  if (said != metadata.end() && said->second != "1")
    return {std::strtoll(said->second.c_str(), nullptr, 10)};
  return {2, 4, 8};
}

}  // namespace

std::optional<FactorFault> not_reduced(const StepEvidence& evidence,
                                       const std::set<std::string>& failing, size_t steps) {
  std::optional<FactorFault> found;
  double nearest = 1;
  for (const int64_t world : worlds(evidence)) {
    for (int64_t rank = 0; rank < world; ++rank) {
      const auto share = [&](const Trace& below, const Tensors& factors) {
        return share_of_gradients(evidence.the_case(), below, factors, {rank, world});
      };
      const double gap =
          evidence.worst(evidence.expected(replaced(evidence, failing, steps, share)));
      if (!(gap < nearest)) continue;
      nearest = gap;
      found = {kNotReduced, "the gradient is what rank " + std::to_string(rank) + " of " +
                                std::to_string(world) +
                                " that split the layer has of it, not the sum over the ranks"};
    }
  }
  return found;
}

std::optional<FactorFault> misplaced(const StepEvidence& evidence,
                                     const std::set<std::string>& failing) {
  for (const Misplaced& row : kMisplaced) {
    const auto of = [&](const Trace& below, const Tensors& factors) {
      return factor_gradients(evidence.the_case(), below, factors, row.bug);
    };
    if (evidence.worst(evidence.expected(replaced(evidence, failing, 1, of))) <= 1)
      return FactorFault{row.name, row.words};
  }
  return std::nullopt;
}

std::vector<std::pair<std::string, std::string>> factor_faults() {
  std::vector<std::pair<std::string, std::string>> rows = {
      {kNotReduced, "a factor that ranks share is stepped by one rank's part of its gradient"}};
  for (const Misplaced& row : kMisplaced) rows.emplace_back(row.name, row.words);
  return rows;
}

}  // namespace dsv32::harness
