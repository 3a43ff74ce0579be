#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace dsv32::harness {

/// Says on standard error how far a long job is: one redrawn line on a terminal, else one line
/// every 30 s. Keeps time in a thread of its own, so a long stage shows that it lives.
class Progress {
 public:
  enum class Style { silent, redrawn, lines };

  explicit Progress(Style style);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// What is being done now. Cheap: may be called often.
  void update(const std::string& text);
  /// Ends the display and wipes the line. Later updates show nothing.
  void finish();

 private:
  void keep_time();
  void show();

  const Style style_;
  const std::chrono::steady_clock::time_point start_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::string text_;
  bool drawn_ = false;
  bool done_ = false;
  std::thread thread_;
};

/// The style that fits standard error and -q.
Progress::Style progress_style(bool quiet);

}  // namespace dsv32::harness
