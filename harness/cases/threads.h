#pragma once

#include "src/model/case.h"

namespace dsv32::harness {

/// One thread where a layer is so small that threads would only wait for each other, else every
/// core.
int threads_for(const Case& c);

}  // namespace dsv32::harness
