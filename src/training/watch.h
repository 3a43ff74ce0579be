#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "src/model/errors.h"

namespace dsv32::training {

/// Who broke a world, as the survivors name it.
struct Fault {
  int rank = -1;  // -1: nobody could be named
  int64_t step = -1;
  std::string what;  // "died", "hangs", ...
};
Error to_error(const Fault& fault, int own_rank);

/// Where a process lives: a process of the same home can be asked for by its number.
std::string process_home();

/// Heartbeats of every rank in the store, so that the others can name the one that died, hangs or
/// left. A thread talks to the store; another one judges and never does, for a store may be silent.
/// A rank whose world has ended while its own work goes on ends itself with exit code 6.
class Watch {
 public:
  struct Settings {
    int rank = 0;
    int size = 1;
    double timeout = 60;      // seconds
    bool rank0_hosts = true;  // the store's server; false: torchrun's agent does
  };
  /// `store`: a connection of its own.
  Watch(c10::intrusive_ptr<c10d::Store> store, Settings settings);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  /// Says that all ranks have joined; from here on they are watched. `homes`: process_home of each.
  void everybody_is_here(std::vector<std::string> homes);
  void set_step(int64_t step);
  /// Says that a collective begins: its number is what a rank that hangs does not reach.
  void enter();

  /// Waits, after a failed collective, until the culprit is known (at most about a second).
  Fault explain(const std::string& error, bool timed_out);
  /// Tells the others. The first fault that any rank declares is the one that all report.
  Fault declare(const Fault& fault);
  /// The fault that some rank has declared.
  std::optional<Fault> fault() const;

  /// The last word of this rank; the host of the store stays until every other rank has had its
  /// own.
  enum class Leaving { done, failed, followed };  // followed: because of another rank's fault
  void leave(Leaving how, const std::string& reason);

 private:
  struct State;
  std::shared_ptr<State> state_;  // a thread that is stuck in the store keeps it
};

}  // namespace dsv32::training
