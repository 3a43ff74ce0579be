#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <utility>

#include "src/optimized/model/options.h"

namespace dsv32::optimized {

/// Calls the ops of the library through the dispatcher, as any user does. Shapes, dtypes and
/// meaning stand with each op's schema in src/optimized/ops/.
class OpCaller {
 public:
  explicit OpCaller(Kernels kernels)
      : space_(kernels == Kernels::simt ? "dsv32_simt::" : "dsv32::") {}

  /// call<Tensor(const Tensor&, double)>("name", x, 0.5)
  template <typename Signature, typename... Arguments>
  auto call(const char* name, Arguments&&... arguments) const {
    return c10::Dispatcher::singleton()
        .findSchemaOrThrow((space_ + name).c_str(), "")
        .template typed<Signature>()
        .call(std::forward<Arguments>(arguments)...);
  }

 private:
  std::string space_;
};

}  // namespace dsv32::optimized
