#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "src/model/lora.h"
#include "src/training/bugs.h"
#include "src/training/trainables.h"

namespace dsv32::training {

/// LoRA on frozen weights (Hu et al., arXiv 2106.09685): the model reads W + alpha / r * B A, and
/// the adapters' gradients follow from those of the weights:
///   dB = alpha / r * dW A^T,  dA = alpha / r * B^T dW.
/// The table holds A and B of every module, in the modules' order.
class LoraAdapters : public Trainables {
 public:
  /// `start` gives A and B by their names (docs/formats.md 1). `base` must outlive this.
  LoraAdapters(const ModelConfig& config, std::vector<LoraModule> modules, const WeightSource& base,
               const WeightSource& start, torch::ScalarType master, Bug bug = Bug::none);

  using Trainables::table;
  TensorTable& table() override { return table_; }
  const TensorTable& table() const override { return table_; }
  /// Gives no gradient for a module of whose weights the run has none.
  TensorTable gradients(const Trace& run) const override;
  HostTensor load(const WeightSpec& spec) const override;
  std::string identity() const override;
  const std::vector<LoraModule>& modules() const { return modules_; }

  /// Adds every adapter to its weight: from now on the merged weights are read and the adapters are
  /// not. Throws Error (internal) when they are merged already.
  void merge();
  /// The base and the adapters are read again. The base was kept: its bits are as before.
  void unmerge();

 private:
  struct Place {  // of an adapted weight in its module
    WeightSpec weight;
    size_t module;
    int64_t expert, first_row;
  };
  void place_weights(const ModelConfig& config);
  double scale(const Place& place) const;
  Tensor a_of(const Place& place) const;  // [rank, in]
  Tensor b_of(const Place& place) const;  // [rows of the weight, rank]
  Tensor delta(const Place& place) const;
  bool transposed(const Place& place) const;
  void add_gradient(const Place& place, Tensor weight_gradient, TensorTable& gradients) const;

  std::vector<LoraModule> modules_;
  std::vector<Place> places_;              // in the order of weight_specs
  std::map<std::string, size_t> by_name_;  // weight name -> place
  const WeightSource& base_;
  torch::ScalarType master_;
  Bug bug_;
  TensorTable table_;
  std::map<std::string, HostTensor> merged_;
};

/// The start of training (docs/formats.md 1): A by its stream, B all zero.
class ZeroB : public WeightSource {
 public:
  explicit ZeroB(uint64_t seed) : synthetic_(seed) {}
  HostTensor load(const WeightSpec& spec) const override;
  std::string identity() const override { return synthetic_.identity(); }

 private:
  SyntheticWeights synthetic_;
};

}  // namespace dsv32::training
