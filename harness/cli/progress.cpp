#include "harness/cli/progress.h"

#include <cstdio>

#include "harness/cli/terminal.h"
#include "src/io/volume/sizes.h"

namespace dsv32::harness {
namespace {

using namespace std::chrono_literals;

constexpr auto kRedraw = 250ms;  // often enough to look alive, too seldom to flicker
/// docs/architecture.md 4: one line per 30 s where nothing can be redrawn.
constexpr auto kLine = 30s;
constexpr char kWipe[] = "\r\033[2K";

}  // namespace

Progress::Style progress_style(bool quiet) {
  if (quiet) return Progress::Style::silent;
  return can_redraw() ? Progress::Style::redrawn : Progress::Style::lines;
}

Progress::Progress(Style style) : style_(style), start_(std::chrono::steady_clock::now()) {
  if (style_ != Style::silent) thread_ = std::thread([this] { keep_time(); });
}

Progress::~Progress() { finish(); }

void Progress::update(const std::string& text) {
  const std::lock_guard lock(mutex_);
  text_ = text;
}

void Progress::finish() {
  {
    const std::lock_guard lock(mutex_);
    done_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (drawn_) std::fputs(kWipe, stderr);
  drawn_ = false;
}

void Progress::keep_time() {
  const auto period = style_ == Style::redrawn ? std::chrono::milliseconds(kRedraw) : kLine;
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, period, [this] { return done_; })) show();
}

void Progress::show() {
  const auto elapsed = std::chrono::steady_clock::now() - start_;
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(elapsed).count();
  std::string line = "[";
  line.append(io::clock_text(static_cast<double>(seconds))).append("] ").append(text_);
  if (style_ == Style::lines) {
    std::fprintf(stderr, "%s\n", line.c_str());
    return;
  }
  line = line.substr(0, terminal_width() - 1);
  std::fprintf(stderr, "%s%s", kWipe, line.c_str());
  std::fflush(stderr);
  drawn_ = true;
}

}  // namespace dsv32::harness
