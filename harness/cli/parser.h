#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "harness/cli/options.h"

namespace dsv32::harness {

/// Option groups of the help page. The first two decide the verdict.
inline constexpr char kJudged[] = "What is judged";
inline constexpr char kHow[] = "How";
inline constexpr char kOutput[] = "What comes out";
inline constexpr char kOther[] = "Other";

/// What CLI11 fills; turned into Options once all of it is there.
struct Raw {
  Options options;
  std::string config, case_name, dialect, batch, seed, timeout, out, junit, markdown, html,
      annotations, color, width;
  std::string nproc, nnodes, node_rank, master_addr, master_port, rank, scale, config_style, noise,
      format;
  std::vector<std::string> dtypes;
  std::string path, base, python, cls, device_map, attn, experts, job_seconds, job_gib;  // fork
  std::string base_report;  // report render
  std::vector<std::string> cases;
  bool list = false, show_config = false, version = false;
};

/// A subcommand and what it stands for.
struct Verb {
  CLI::App* app;
  Command command;
};

struct Parser {
  Raw raw;
  CLI::App app;
  std::vector<Verb> verbs;
  std::vector<CLI::App*> later;  // subcommands of later versions
};

/// The whole command line of docs/architecture.md 4.
std::unique_ptr<Parser> make_parser();

}  // namespace dsv32::harness
