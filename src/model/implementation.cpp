#include "src/model/implementation.h"

#include <utility>

namespace dsv32 {

bool measured(const RunOptions& options, const std::string& name, const HostTensor& value,
              Trace& trace) {
  if (!options.measure) return false;
  std::optional<TapDistance> distance = options.measure(name, value);
  if (!distance) return false;
  trace.distances[name] = std::move(*distance);
  return true;
}

void keep_or_measure(const RunOptions& options, const std::string& name, HostTensor value,
                     Trace& trace) {
  if (!measured(options, name, value, trace)) trace.put(name, std::move(value));
}

}  // namespace dsv32
