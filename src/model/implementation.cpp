#include "src/model/implementation.h"

#include <utility>

namespace dsv32 {

void keep_or_measure(const RunOptions& options, const std::string& name, HostTensor value,
                     Trace& trace) {
  if (options.measure) {
    if (std::optional<TapDistance> distance = options.measure(name, value)) {
      trace.distances[name] = std::move(*distance);
      return;
    }
  }
  trace.put(name, std::move(value));
}

}  // namespace dsv32
