#include "src/optimized/optimized.h"

namespace dsv32::optimized {

void load_ops() {}

const std::vector<UnpromisedBits>& unpromised_bits() {
  static const std::string atomics =
      "with deterministic=False a device adds dkv by atomics, in no fixed order; the model asks "
      "for "
      "deterministic=True";
  static const std::vector<UnpromisedBits> all = {
      {"sparse_mla_backward", atomics},
      {"dense_mla_backward", atomics},
      {"at::linear",
       "with another number of threads, or another GPU, BLAS may sum in another order"},
  };
  return all;
}

}  // namespace dsv32::optimized
