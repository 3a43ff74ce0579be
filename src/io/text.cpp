#include "src/io/text.h"

#include <algorithm>
#include <utility>

namespace dsv32::io {

void refuse(Complaint complaint) {
  if (complaint.got.empty()) complaint.got = "an empty text";
  throw Error(ExitCode::artefact, std::move(complaint));
}

std::string listed(const std::vector<std::string>& names, size_t limit) {
  std::string out = std::to_string(names.size()) + ":";
  const size_t shown = std::min(limit, names.size());
  for (size_t i = 0; i < shown; ++i) out += (i ? ", " : " ") + printable(names[i]);
  if (shown < names.size()) out += ", ... and " + std::to_string(names.size() - shown) + " more";
  return out;
}

}  // namespace dsv32::io
