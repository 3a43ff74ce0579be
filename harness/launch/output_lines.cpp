#include "harness/launch/output_lines.h"

#include <unistd.h>

#include <cerrno>

namespace dsv32::harness {

void OutputLines::read_some(const std::function<void(const std::string& line)>& take) {
  char buffer[1 << 14];
  const ssize_t size = ::read(file_, buffer, sizeof buffer);
  if (size < 0 && errno == EINTR) return;
  if (size > 0) rest_.append(buffer, static_cast<size_t>(size));
  for (size_t end; (end = rest_.find('\n')) != std::string::npos; rest_.erase(0, end + 1))
    take(rest_.substr(0, end));
  if (size > 0) return;
  if (!rest_.empty()) take(rest_);
  close();
}

void OutputLines::close() {
  if (file_ >= 0) ::close(file_);
  file_ = -1;
}

}  // namespace dsv32::harness
