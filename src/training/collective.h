#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "src/training/rank_env.h"
#include "src/training/tensor_table.h"

namespace dsv32::training {

struct WorldOptions {
  std::string device = "cpu";  // "cpu": Gloo; "cuda": NCCL
  double timeout = 60;         // seconds that the others wait for a rank
  /// What every rank must have alike, compared at the start: "config", "seed", "program".
  std::map<std::string, std::string> alike = {};
};

/// The ranks that train together: one small face over c10d. Every rank calls the same operations in
/// the same order. A rank that dies, hangs, never joins or has another configuration makes each
/// operation of the others throw Error (environment) that names it and its step.
class World {
 public:
  /// Makes a world of one.
  World();
  World(const RankEnvironment& env, const WorldOptions& options);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// Where the tensors of the operations live.
  torch::Device device() const;

  /// Sums over ranks, in place.
  void all_reduce(Tensor& tensor);
  /// share = this rank's piece of the sum over ranks. whole: [size * n], share: [n].
  void reduce_scatter(Tensor& share, Tensor& whole);
  /// whole = every rank's share, in the order of the ranks.
  void all_gather(Tensor& whole, Tensor& share);
  void broadcast(Tensor& tensor, int root);
  void barrier();

  /// The training step that this rank is in: what the others name when it is lost. Collective, so
  /// that nobody is in a step, and lost in it, before all know of it.
  void set_step(int64_t step);
  /// Says that this rank is through: once all are, leaving is no fault any more. Collective.
  void finish();
  /// Says that this rank cannot go on: the others shall name it.
  void fail(const std::string& reason);

 private:
  struct Members;
  int rank_ = 0;
  int size_ = 1;
  std::unique_ptr<Members> members_;  // null in a world of one
};

}  // namespace dsv32::training
