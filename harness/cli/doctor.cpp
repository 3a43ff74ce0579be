#include "harness/doctor/doctor.h"

#include <cstdlib>
#include <iostream>

#include "harness/cli/commands.h"
#include "harness/cli/names.h"
#include "harness/report/text.h"
#include "src/io/io.h"

namespace dsv32::harness {
namespace {

/// The case whose sizes a config is known by.
std::string case_of(const std::string& config) { return config == "tiny" ? "tiny-wide" : config; }

std::string shown(const Line& line) {
  const char* words[] = {"ok", "note", "lack"};
  constexpr size_t kFinding = 6, kTopic = 15;
  std::string text = padded(words[static_cast<int>(line.health)], kFinding) +
                     padded(line.topic + " ", kTopic) + printable(line.text, 400) + "\n";
  if (!line.remedy.empty())
    text += std::string(kFinding + kTopic, ' ') + "to do: " + line.remedy + "\n";
  return text;
}

}  // namespace

ExitCode doctor_command(const Options& options) {
  const std::string config = options.config.value_or("small");
  expect_one_of("--config", "config", config, io::config_names());
  const char* root = std::getenv("DSV32_DOCTOR_ROOT");  // for tests: another /proc
  const Facts facts = gather({.root = root == nullptr ? "" : root,
                              .disk = options.weights == "synthetic" ? "." : options.weights,
                              .pythons = options.arguments,
                              .cuda = DSV32_CUDA_VERSION});
  std::vector<Needs> all;
  for (const char* name : {"tiny", "small", "medium", "full"})
    all.push_back(needs_of(name, case_of(name)));
  ExitCode code = ExitCode::ok;
  for (const Line& line : examine(facts, needs_of(config, case_of(config)))) {
    std::cout << shown(line);
    if (line.health == Health::lack) code = ExitCode::environment;
  }
  std::cout << "\n" << fits(facts, all);
  std::cout << (code == ExitCode::ok ? "\nOK | --config " : "\nLACKING | --config ") << config
            << "\n";
  return code;
}

}  // namespace dsv32::harness
