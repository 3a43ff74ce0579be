#include "harness/cli/stop.h"

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <string>

#include "src/log/log.h"

namespace dsv32::harness {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kPoll = 20ms;
constexpr auto kGrace = 2s;

std::atomic<int> g_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "the handler may only touch lock-free data");

extern "C" void on_signal(int number) {
  constexpr int kSignalExit = 128;  // the shell's convention: 130 for SIGINT, 143 for SIGTERM
  if (g_signal.exchange(number) != 0) _exit(kSignalExit + number);
}

std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%g s", seconds);
  return text;
}

}  // namespace

Stop::Stop(std::optional<double> seconds, std::function<void()> before_exit)
    : seconds_(seconds), before_exit_(std::move(before_exit)) {
  g_signal = 0;
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  thread_ = std::thread([this] { watch(); });
}

Stop::~Stop() {
  disarm();
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

bool Stop::asked() const { return late_ || g_signal != 0; }

void Stop::check() const {
  if (asked()) throw reason();
}

void Stop::disarm() {
  disarmed_ = true;
  if (thread_.joinable()) thread_.join();
}

Error Stop::reason() const {
  if (g_signal == SIGINT) {
    return Error(ExitCode::interrupted, {.where = "interrupted", .what = "no report was written"});
  }
  if (g_signal == SIGTERM) {
    return Error(ExitCode::terminated, {.where = "terminated", .what = "no report was written"});
  }
  return Error(ExitCode::environment,
               {.where = "--timeout",
                .what = "the time limit was reached; no report was written",
                .expected = "an end within " + seconds_text(seconds_.value_or(0)),
                .got = "a run that goes on",
                .hint = "give it more time, or check less: --case, --suite, -k"});
}

void Stop::watch() {
  const auto start = Clock::now();
  std::optional<Clock::time_point> asked_at;
  while (!disarmed_) {
    std::this_thread::sleep_for(kPoll);
    const std::chrono::duration<double> elapsed = Clock::now() - start;
    if (seconds_ && elapsed.count() > *seconds_) late_ = true;
    if (!asked()) continue;
    if (!asked_at) asked_at = Clock::now();
    if (disarmed_ || Clock::now() - *asked_at < kGrace) continue;
    const Error error = reason();
    before_exit_();
    log_error(error.what());
    _exit(static_cast<int>(error.code()));
  }
}

}  // namespace dsv32::harness
