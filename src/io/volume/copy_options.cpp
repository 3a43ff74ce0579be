#include "src/io/volume/copy_options.h"

#include "src/io/volume/sizes.h"

namespace dsv32::io {

std::string to_string(const CopyProgress& p) {
  const auto size = [](uint64_t bytes) { return size_text(static_cast<double>(bytes)); };
  std::string text =
      size(p.there) + " of " + size(p.bytes) + " copied, " + size(p.checked) + " checked";
  if (p.rate > 0) text += ", " + size_text(p.rate) + "/s";
  return p.seconds_left < 0 ? text : text + ", " + clock_text(p.seconds_left) + " left";
}

}  // namespace dsv32::io
