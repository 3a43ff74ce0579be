#pragma once

#include <string>

#include "harness/cli/options.h"
#include "harness/cli/progress.h"
#include "harness/cli/stop.h"
#include "src/io/io.h"

namespace dsv32::harness {

/// Progress line and signals of a command that takes a while.
struct Watch {
  explicit Watch(const Options& options)
      : progress(progress_style(options.quiet)), stop(options.timeout, [this] {
          progress.finish();
          io::remove_temporaries();
        }) {}
  void step(const std::string& text) {
    stop.check();
    progress.update(text);
  }

  Progress progress;
  Stop stop;
};

}  // namespace dsv32::harness
