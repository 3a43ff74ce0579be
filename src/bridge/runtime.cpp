#include "src/bridge/runtime.h"

#include <ATen/Version.h>
#include <torch/torch.h>

#include "src/model/errors.h"

namespace dsv32 {

std::string torch_version() { return TORCH_VERSION; }

static std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

std::string arithmetic_library() {
  std::string text = at::hasMKL() ? first_line(at::get_mkl_version()) : "no MKL";
  if (at::hasMKLDNN()) text += "; " + first_line(at::get_mkldnn_version());
  return text + "; " + at::get_cpu_capability();
}

std::string resolve_device(const std::string& asked) {
  const bool present = torch::cuda::is_available();
  if (asked == "auto") return present ? "cuda" : "cpu";
  if (asked.rfind("cuda", 0) == 0 && !present) {
    throw Error(ExitCode::environment, {.where = "--device",
                                        .what = "device",
                                        .expected = "a CUDA device",
                                        .got = "none",
                                        .hint = "use --device cpu"});
  }
  return asked;
}

void set_threads(int threads) { torch::set_num_threads(threads); }

}  // namespace dsv32
