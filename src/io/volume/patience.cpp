#include "src/io/volume/patience.h"

#include <cerrno>
#include <cstring>
#include <thread>

#include "src/model/errors.h"

namespace dsv32::io {

bool is_transient(int error) {
  switch (error) {
    case EIO:
    case EAGAIN:
    case ESTALE:
    case ETIMEDOUT:
    case EREMOTEIO:
      return true;
    default:
      return false;
  }
}

bool is_of_volume(int error) {
  switch (error) {
    case ENOTCONN:
    case ECONNABORTED:
    case ECONNRESET:
    case ENODEV:
    case ENXIO:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETDOWN:
    case ENETUNREACH:
      return true;
    default:
      return is_transient(error);
  }
}

Outcome patiently(const std::function<bool()>& call, const Patience& patience) {
  auto pause = patience.pause;
  for (Outcome outcome;;) {
    errno = 0;
    if (call()) return {.error = 0, .tries = outcome.tries};
    outcome.error = errno;
    if (outcome.error == EINTR) continue;
    if (!is_transient(outcome.error) || outcome.tries >= patience.tries) return outcome;
    std::this_thread::sleep_for(pause);
    pause *= kPauseGrowth;
    ++outcome.tries;
  }
}

std::string reason(const Outcome& outcome) {
  const std::string text = std::strerror(outcome.error);
  return outcome.tries > 1 ? text + ", " + std::to_string(outcome.tries) + " times" : text;
}

size_t read_patiently(const ReadAt& read, uint64_t offset, void* out, size_t size,
                      const std::string& where, const Patience& patience) {
  auto* at = static_cast<char*>(out);
  size_t done = 0;
  while (done < size) {
    ssize_t n = 0;
    const Outcome outcome = patiently(
        [&] {
          n = read(offset + done, at + done, size - done);
          return n >= 0;
        },
        patience);
    if (outcome.error != 0)
      throw Error(ExitCode::environment,
                  {.where = where,
                   .what = "read at byte " + std::to_string(offset + done),
                   .expected = std::to_string(size - done) + " bytes",
                   .got = reason(outcome),
                   .hint = is_of_volume(outcome.error)
                               ? "is the volume still there? dsv32-verify weights copy moves a "
                                 "checkpoint to a faster one"
                               : ""});
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

}  // namespace dsv32::io
