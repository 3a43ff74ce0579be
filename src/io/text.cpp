#include "src/io/text.h"

#include <algorithm>

namespace dsv32::io {

void refuse(Complaint complaint) { throw Error(ExitCode::artefact, std::move(complaint)); }

std::string printable(std::string_view text, size_t limit) {
  constexpr char kDigits[] = "0123456789abcdef";
  if (text.empty()) return "an empty text";
  std::string out;
  for (char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return text.size() > limit ? out + "..." : out;
}

std::string listed(const std::vector<std::string>& names, size_t limit) {
  std::string out = std::to_string(names.size()) + ":";
  const size_t shown = std::min(limit, names.size());
  for (size_t i = 0; i < shown; ++i) out += (i ? ", " : " ") + printable(names[i]);
  if (shown < names.size()) out += ", ... and " + std::to_string(names.size() - shown) + " more";
  return out;
}

}  // namespace dsv32::io
