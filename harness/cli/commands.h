#pragma once

#include <string>
#include <vector>

#include "harness/cli/options.h"
#include "harness/job/estimate.h"
#include "harness/job/job.h"
#include "harness/report/report.h"
#include "src/model/case.h"
#include "src/model/errors.h"

namespace dsv32::harness {

/// What each command does. Wrong input throws Error; the result is the exit code.
ExitCode run_command(const Options& options);

/// The main job: judge the cases or the candidates.
ExitCode judge_command(const Options& options);

/// The report on `options.candidates`, not delivered.
Report judge_candidates(const Options& options);
/// `fork [PATH]`: dumps and judges a fork in one go.
ExitCode fork_command(const Options& options);

/// `compare A B`.
ExitCode compare_command(const Options& options);

/// `selfcheck [TRACE]`: plants faults into a clean trace and prints what the judge says of each.
ExitCode self_check_command(const Options& options);

/// `launch --nproc N -- COMMAND`. The exit code may be any that the command has.
ExitCode launch_command(const Options& options);
/// One rank of a world that the suite `sharded` starts; harness/training/sharded/run.h.
ExitCode sharded_rank_command(const std::vector<std::string>& words);

/// `weights make`: a synthetic checkpoint.
ExitCode weights_make_command(const Options& options);
/// `weights check DIR`: 4 when a value is wrong; `--time` also tells how fast it is read.
ExitCode weights_check_command(const Options& options);
/// `weights copy DIR FAST_DIR`. Throws Error; what was copied stays and is gone on with.
ExitCode weights_copy_command(const Options& options);

/// `adapter check DIR`: what a LoRA adapter's folder holds. Throws Error (artefact) when it does
/// not fit the config or the demands.
ExitCode adapter_check_command(const Options& options);
/// `adapter merged DIR BASE MERGED`: 1 when MERGED is not BASE with this adapter merged.
ExitCode adapter_merged_command(const Options& options);

/// `batch make`: golden/dump/dsv32_batch.py in the Python of DSV32_PYTHON, else python3. Does not
/// return; throws Error (environment) when that Python cannot be started.
ExitCode batch_make_command(const Options& options);

/// `doctor`: what this machine has, what it lacks for a config, what fits.
ExitCode doctor_command(const Options& options);

/// `--list` and `list [GROUP]`.
ExitCode list_command(const Options& options);

/// `--show-config`: the config as read and the numbers that follow from it, as JSON.
ExitCode show_config_command(const Options& options);

/// The config that the options mean: of a case, or a named one, or a file.
ModelConfig chosen_config(const Options& options);

/// The cases that the options mean: the candidates' own, one case, or those of a config.
/// Throws Error (artefact) when a candidate contradicts --case, --config or --seed.
std::vector<Case> chosen_cases(const Options& options);

/// The suites that the options mean: those asked for, else forward and backward and, in the main
/// job of config small, every training suite.
std::vector<std::string> chosen_suites(const Options& options);
/// The training suites among them, each on its cases of the options' config, or on the one case.
/// Throws Error (usage) when a suite that was named does not have that case.
std::vector<TrainingTask> chosen_training(const Options& options);

/// Says what a long job is expected to take, before it starts. Its rates are those of CPUs.
void announce(const Estimate& estimate, const std::string& device);
/// Says B and S of a case that no list has.
void say_shape(const Case& c);

/// Throws Error (usage) when an output would overwrite an input or another output, (environment)
/// unless everything that `options` wants written can be written. Before any work.
void probe_outputs(const Options& options);

/// Writes and prints a finished report. The exit code is the report's, or worse when it could not
/// be written.
ExitCode deliver(Report report, const Options& options, const Report* base = nullptr);
/// All that the options want written of a report, and the report on stdout unless data is there.
/// `ok`, or why something could not be written.
ExitCode write_renderings(const Report& report, const Options& options,
                          const Report* base = nullptr);

/// `report render`: `ok` when it could be written, whatever the report says.
ExitCode report_render_command(const Options& options);
/// `report validate`: 4 when one of the files is no report.
ExitCode report_validate_command(const Options& options);
/// `report diff`: 1 by --fail-on, 5 when the reports have no check in common.
ExitCode report_diff_command(const Options& options);

}  // namespace dsv32::harness
