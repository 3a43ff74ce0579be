#include "harness/cli/commands.h"

#include <commit.h>

#include <algorithm>
#include <iostream>

#include "golden/reader/golden.h"
#include "harness/cli/golden_commands.h"
#include "harness/cli/names.h"
#include "harness/cli/watch.h"
#include "harness/job/run_job.h"
#include "harness/report/report.h"
#include "src/bridge/runtime.h"
#include "src/io/io.h"
#include "src/log/log.h"
#include "src/model/dialect.h"

namespace dsv32::harness {
namespace {

ExitCode version_command() {
  std::cout << "dsv32-verify " << DSV32_VERSION << "\n"
            << "commit " << DSV32_COMMIT << "\n"
            << "torch " << torch_version() << "\n"
            << "CUDA " << DSV32_CUDA_VERSION << "\n"
            << "HDF5 " << DSV32_HDF5_VERSION << "\n"
            << "data " << io::home_and_origin().path.string() << " ("
            << io::home_and_origin().origin << ")\n"
            << "report schema " << kReportSchemaVersion << "\n";
  return ExitCode::ok;
}

std::string dump_impl(const Options& options) {
  return options.impls.empty() ? "reference" : options.impls.front();
}

DType dump_type(const Options& options) {
  if (dump_impl(options) == "oracle") return DType::float64;
  return options.dtypes.empty() ? DType::float32 : options.dtypes.front();
}

/// Only a backward pass has gradients, and they have no sketch.
void check_tap_gradients(const Options& options) {
  if (!options.tap_gradients) return;
  const auto refuse = [](const std::string& expected, const std::string& got) {
    throw Error(
        ExitCode::usage,
        {.where = "dump --tap-gradients", .what = "mode", .expected = expected, .got = got});
  };
  if (options.sketch) refuse("whole taps", "--sketch");
  if (options.mode == "forward" || options.mode == "train" || options.mode == "generate")
    refuse("--mode backward, kl-warmup or kl-sparse", "--mode " + options.mode);
}

ExitCode dump_command(const Options& options) {
  check_tap_gradients(options);
  probe_outputs(options);
  const Case c = io::case_of_words(*options.case_name);
  const Dialect dialect = find_dialect(options.dialect.value_or("spec-1"));
  const std::string impl = dump_impl(options);
  const DType dtype = dump_type(options);
  const std::string device = resolve_device(options.device);
  announce(estimate_of_dump(c, dtype, options.mode), device);
  Watch watch(options);
  const auto step = [&](const std::string& text) { watch.step(text); };
  step(c.name + ": " + impl + " " + options.mode);
  const Trace trace =
      make_trace(c, impl, dtype, options.mode, dialect, {.device = device, .progress = step},
                 options.weights, options.tap_gradients);
  watch.stop.disarm();
  watch.stop.check();
  io::write_trace(*options.out, options.sketch ? sketched(trace, c) : trace);
  watch.progress.finish();
  log_info(*options.out + ": " + std::to_string(trace.names().size()) + " tensors");
  return ExitCode::ok;
}

}  // namespace

void say_shape(const Case& c) {
  const auto& all = io::cases();
  const auto listed = [&](const Case& known) { return io::case_json(known) == io::case_json(c); };
  if (std::any_of(all.begin(), all.end(), listed)) return;
  log_info("case " + c.name + ": B " + std::to_string(c.B) + ", S " + std::to_string(c.S) +
           ", pad " + std::to_string(c.pad) + ", seed " + std::to_string(c.seed) +
           (c.sparse ? "" : "; fewer than half of its rows see more than index_topk keys"));
}

void announce(const Estimate& estimate, const std::string& device) {
  const std::string text = device == "cpu" ? announcement(estimate) : "";
  if (!text.empty()) log_info(text);
}

ExitCode run_command(const Options& options) {
  switch (options.command) {
    case Command::judge:
      return judge_command(options);
    case Command::dump:
      return dump_command(options);
    case Command::compare:
      return compare_command(options);
    case Command::self_check:
      return self_check_command(options);
    case Command::weights_make:
      return weights_make_command(options);
    case Command::weights_check:
      return weights_check_command(options);
    case Command::weights_copy:
      return weights_copy_command(options);
    case Command::adapter_check:
      return adapter_check_command(options);
    case Command::adapter_merged:
      return adapter_merged_command(options);
    case Command::golden_verify:
      return golden_verify_command(golden::default_directory());
    case Command::golden_diff:
      return golden_diff_command(options.arguments[0], options.arguments[1]);
    case Command::golden_show:
      return golden_show_command(options.arguments.front(), golden::default_directory());
    case Command::fork:
      return fork_command(options);
    case Command::launch:
      return launch_command(options);
    case Command::sharded_rank:
      return sharded_rank_command(options.arguments);
    case Command::batch_make:
      return batch_make_command(options);
    case Command::doctor:
      return doctor_command(options);
    case Command::list:
      return list_command(options);
    case Command::report_render:
      return report_render_command(options);
    case Command::report_validate:
      return report_validate_command(options);
    case Command::report_diff:
      return report_diff_command(options);
    case Command::show_config:
      return show_config_command(options);
    case Command::version:
      return version_command();
    case Command::help:
      std::cout << options.help;
      return ExitCode::ok;
  }
  return ExitCode::internal;
}

}  // namespace dsv32::harness
