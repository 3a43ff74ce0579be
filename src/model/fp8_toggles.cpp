#include "src/model/dialect.h"

namespace dsv32 {

const std::vector<KnownBug>& fp8_toggles() {
  // Sizes that quantisation of any config shows in.
  static const std::string kCase = "tiny-fp8";
  const auto row = [](const char* name, const char* words, const char* tap,
                      std::function<void(Dialect&)> plant) {
    return KnownBug{name, words, tap, kCase, std::move(plant)};
  };
  static const std::vector<KnownBug> all = {
      row("latent-fp8", "the key-value latent is quantised to FP8 and restored", "kv_latent",
          [](Dialect& d) { d.fp8.latent = true; }),
      row("indexer-fp8", "index scores from FP8 codes of Hadamard-rotated queries and keys",
          "ix.scores", [](Dialect& d) { d.fp8.indexer = true; }),
      row("plain-scale", "scales of activations are float32, not powers of two", "q_latent",
          [](Dialect& d) { d.fp8.plain_scale = true; }),
      row("fp8-input-exact", "linear layers of FP8 weights do not quantise their input", "q_latent",
          [](Dialect& d) { d.fp8.input_exact = true; }),
      row("fp8-scale-below", "scales of activations are rounded down to a power of two", "q_latent",
          [](Dialect& d) { d.fp8.scale_below = true; }),
      row("fp8-unrotated", "no Hadamard rotation before the indexer quantises", "ix.scores",
          [](Dialect& d) { d.fp8.unrotated = true; }),
      row("fp8-half-runs", "half as many activations as should be share a scale", "q_latent",
          [](Dialect& d) { d.fp8.half_runs = true; }),
  };
  return all;
}

}  // namespace dsv32
