// Where the op suites run without a device.

#include "suites/ops/kit.h"

namespace dsv32::suites {

std::vector<Backend> op_backends() { return {{"dsv32", at::kCPU}, {"dsv32_simt", at::kCPU}}; }

void OpTest::SetUp() {}

}  // namespace dsv32::suites
