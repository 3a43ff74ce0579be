#pragma once

#include <map>
#include <string>

#include "src/model/trace.h"
#include "src/model/weights.h"
#include "src/training/tensor_table.h"

namespace dsv32::training {

/// What training moves: the weights themselves (FullWeights), or LoRA adapters on frozen ones
/// (LoraAdapters). As a WeightSource it is what the model reads: the weights in force now.
class Trainables : public WeightSource {
 public:
  /// The tensors that an optimizer may move, by name; every one is a master copy (float32, or
  /// float64 for the oracle). They are changed in place (TensorTable::assign), never replaced.
  virtual TensorTable& table() = 0;
  virtual const TensorTable& table() const = 0;
  /// Gradient of every tensor of the table that has one, from the taps grad.<weight> of a run.
  virtual TensorTable gradients(const Trace& run) const = 0;
};

/// Every parameter of the model, resident, in the order of weight_specs. Buffers stay with the
/// start source.
class FullWeights : public Trainables {
 public:
  /// Makes masters of type `master`. A model of a 16-bit `model` type reads them rounded to it; any
  /// other reads them as they are.
  FullWeights(const ModelConfig& config, const WeightSource& start, torch::ScalarType master,
              DType model = DType::float32);
  TensorTable& table() override { return table_; }
  const TensorTable& table() const override { return table_; }
  /// The gradients may share memory with the run's taps.
  TensorTable gradients(const Trace& run) const override;
  /// The tensor shares memory with the master: a run must end before the next optimizer step.
  HostTensor load(const WeightSpec& spec) const override;
  std::string identity() const override;

 private:
  const WeightSource& start_;
  torch::ScalarType master_;
  DType model_;
  std::map<std::string, HostTensor> memory_;  // of the masters
  TensorTable table_;
};

}  // namespace dsv32::training
