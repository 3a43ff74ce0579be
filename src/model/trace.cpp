#include "src/model/trace.h"

#include <algorithm>
#include <utility>

namespace dsv32 {

bool is_decision(const std::string& full) {
  const auto tap = parse_tap(full);
  return tap && tap->info.is_decision();
}

void Trace::put(const std::string& name, HostTensor value) {
  if (!has(name)) names_.push_back(name);
  values_[name] = std::move(value);
}

const HostTensor* Trace::find(const std::string& name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? nullptr : &found->second;
}

void Trace::erase(const std::string& name) {
  values_.erase(name);
  names_.erase(std::remove(names_.begin(), names_.end(), name), names_.end());
}

}  // namespace dsv32
