#include <iostream>

#include "harness/cases/layers/selection.h"
#include "harness/cli/commands.h"
#include "harness/cli/watch.h"
#include "src/io/io.h"
#include "src/io/scratch.h"
#include "src/io/volume/copy.h"
#include "src/io/volume/timing.h"
#include "src/log/log.h"

namespace dsv32::harness {
namespace {

/// A case, or the one that is made up for a config.
Case case_to_make(const Options& options) {
  Case c = options.case_name ? io::case_of_words(*options.case_name)
                             : io::case_of_config(*options.config);
  if (options.seed) c.seed = *options.seed;
  return c;
}

io::CheckpointFormat checkpoint_format(const std::string& name) {
  if (name == "fp8") return io::CheckpointFormat::fp8;
  return name == "demo" ? io::CheckpointFormat::demo : io::CheckpointFormat::plain;
}

}  // namespace

ExitCode weights_make_command(const Options& options) {
  const Case c = case_to_make(options);
  io::MakeCheckpointOptions how{.config_style = options.config_style};
  if (!options.dtypes.empty()) how.dtype = options.dtypes.front();
  if (options.format) how.format = checkpoint_format(*options.format);
  if (!options.layers.empty())
    how.only = selected_specs(parse_layers(options.layers, c.config), c.config);
  probe_outputs(options);
  announce(estimate_of_weights(c, how.only), "cpu");
  say_shape(c);
  {
    Watch watch(options);
    how.progress = [&](const std::string& shard) {
      watch.step("weights of " + c.name + ": " + shard);
    };
    io::make_checkpoint(c, *options.out, how);
    watch.stop.disarm();
  }
  log_info(*options.out + ": checkpoint of " + c.name +
           (how.only.empty() ? "" : ", layers " + options.layers + " alone"));
  return ExitCode::ok;
}

ExitCode weights_check_command(const Options& options) {
  const std::string& folder = options.arguments.front();
  const std::string fast =
      options.arguments.size() > 1 ? options.arguments[1] : io::scratch_folder();
  io::CheckpointReport report;
  std::string times;
  {
    Watch watch(options);
    watch.step(folder);
    const auto step = [&](const std::string& text) { watch.step(text); };
    report = io::check_checkpoint(folder, options.full, step);
    if (options.time) times = io::time_reading(folder, fast, {}, step).text();
  }
  std::cout << report.text << times;
  return report.good ? ExitCode::ok : ExitCode::artefact;
}

ExitCode weights_copy_command(const Options& options) {
  io::CopyReport report;
  {
    Watch watch(options);
    watch.step("looking at " + options.arguments[0]);
    const auto show = [&](const io::CopyProgress& now) {
      if (watch.stop.asked()) log_info("what was copied is kept: the same command goes on from it");
      watch.step(to_string(now));
    };
    report = io::copy_checkpoint(options.arguments[0], options.arguments[1], {.progress = show});
    watch.stop.disarm();
  }
  std::cout << report.text();
  return ExitCode::ok;
}

}  // namespace dsv32::harness
