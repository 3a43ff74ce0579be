#include "harness/job/weights.h"

#include "harness/cases/layers/selection.h"
#include "src/io/io.h"

namespace dsv32::harness {

std::unique_ptr<const WeightSource> open_weights(const std::string& source, const Case& c,
                                                 const std::string& layers) {
  if (source == "synthetic") return std::make_unique<SyntheticWeights>(c);
  const std::string kind = source.substr(0, source.find(':'));
  if (kind == "synthetic" || kind == "synthetic-fp8") {
    Case other = c;
    other.fp8 = kind == "synthetic-fp8";
    if (other.fp8 && !other.config.fp8) other.config.fp8.emplace();
    if (kind.size() < source.size()) other.seed = std::stoull(source.substr(kind.size() + 1));
    return std::make_unique<SyntheticWeights>(other);
  }
  if (layers.empty()) return io::open_checkpoint(source, c.config);
  return io::open_checkpoint(source, c.config,
                             selected_specs(parse_layers(layers, c.config), c.config));
}

}  // namespace dsv32::harness
