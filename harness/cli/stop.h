#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <thread>

#include "src/model/errors.h"

namespace dsv32::harness {

/// Ends a long run early, on Ctrl-C, SIGTERM or `--timeout`, while nothing is being written.
/// The run is asked first (`asked`, `check`); one that does not end within two seconds is left at
/// once. A second signal kills at once. At most one object at a time: signal handlers belong to the
/// process.
class Stop {
 public:
  /// `seconds`: the time limit. `before_exit`: called before a run that does not listen is left
  /// (wipes the progress line).
  Stop(std::optional<double> seconds, std::function<void()> before_exit);
  ~Stop();
  Stop(const Stop&) = delete;
  Stop& operator=(const Stop&) = delete;

  bool asked() const;
  /// Throws Error (interrupted, terminated or, after the time limit, environment) once asked.
  void check() const;
  /// Says that the run may not be left any more: results are being written.
  void disarm();

 private:
  void watch();
  Error reason() const;

  const std::optional<double> seconds_;
  const std::function<void()> before_exit_;
  std::atomic<bool> late_{false};
  std::atomic<bool> disarmed_{false};
  std::thread thread_;
};

}  // namespace dsv32::harness
