#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "harness/cli/terminal.h"
#include "src/model/tensor.h"

namespace dsv32::harness {

/// What the command line asks for.
enum class Command {
  judge,  // no subcommand: the main job
  dump,
  compare,
  self_check,
  weights_make,
  weights_check,
  weights_copy,
  adapter_check,
  adapter_merged,
  golden_verify,
  golden_diff,
  golden_show,
  fork,
  launch,
  sharded_rank,  // one rank of a world that the suite itself starts
  doctor,
  batch_make,
  list,
  report_render,
  report_validate,
  report_diff,
  show_config,
  version,
  help,
};

/// What `fork` alone is told.
struct ForkOptions {
  std::optional<std::string> path, base;  // source trees
  std::optional<std::string> python;
  std::string fail_on = "any";  // with a base: "new" forgives what the base has as well
  std::vector<std::string> cases;
  bool full_set = false;
  std::optional<std::string> cls, device_map, attn, experts;  // as golden/dump takes them
  std::vector<std::string> overrides;
  bool trust_remote_code = false;
  std::optional<double> job_seconds, job_gib;  // limits of one dump
};

/// The command line as data; names are checked, files are not.
struct Options {
  Command command = Command::judge;
  std::string help;  // text to print, for Command::help

  // what is judged
  std::optional<std::string> config;  // name or path
  std::optional<std::string> case_name;
  std::vector<std::string> candidates;
  std::optional<std::string> dialect;
  bool accept_weak = false;
  bool all = false;
  bool no_cache = false;
  std::optional<std::string> noise;
  std::string weights = "synthetic";
  std::optional<std::string> batch;
  std::optional<uint64_t> seed;

  // how
  std::vector<std::string> suites;  // empty: the command's default; "all": every one
  std::string filter;
  std::string device = "auto";
  std::vector<DType> dtypes;       // empty: the command's default
  std::vector<std::string> impls;  // empty: the command's default
  std::optional<double> timeout;   // seconds
  std::string layers;              // words of --layers; "" without
  bool dry_run = false;
  bool resume = false;

  // what comes out
  /// A folder for reports; a file for dump, a folder for weights make.
  std::optional<std::string> out;
  std::optional<std::string> junit;
  std::optional<std::string> markdown;
  std::optional<std::string> html;
  std::optional<std::string> annotations;
  bool json = false;
  ColorChoice color = ColorChoice::automatic;
  bool verbose = false;
  bool quiet = false;

  // subcommands
  std::string mode = "forward";        // dump
  bool sketch = false;                 // dump
  bool tap_gradients = false;          // dump
  std::optional<int> config_style;     // weights make
  std::optional<std::string> format;   // weights make: bf16, fp8, demo
  bool full = false;                   // weights check
  bool time = false;                   // weights check
  std::vector<std::string> arguments;  // compare A B, list GROUP, launch -- COMMAND, ...
  int64_t nproc = 0, nnodes = 1, node_rank = 0, master_port = 0;  // launch
  std::optional<std::string> master_addr;                         // launch
  std::string link;                        // report render and fork: where the page is
  std::optional<std::string> base_report;  // report render
  std::string fail_on = "new";             // report diff
  std::optional<int64_t> width;            // report render: columns of the terminal report
  std::optional<int64_t> rank;             // adapter check
  std::optional<double> scale;             // adapter check

  ForkOptions fork;

  std::string repro;  // a command that gives the same verdict again
};

/// Throws Error (usage), with the nearest name for an unknown one.
Options parse_command_line(const std::vector<std::string>& arguments);

/// The groups of `list`.
const std::vector<std::string>& list_groups();
/// The suites of this version, and a line about each: of the model first, then of training.
struct SuiteInfo {
  std::string name;
  std::string about;
};
const std::vector<SuiteInfo>& suites();

}  // namespace dsv32::harness
