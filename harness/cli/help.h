#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace dsv32::harness {

/// Help pages: what it does, usage, options by group, commands, and examples for the program
/// itself.
class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter();
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override;

 private:
  std::string usage(const CLI::App& app, const std::string& name) const;
  std::string options(const CLI::App& app) const;
  std::string commands(const CLI::App& app) const;
  std::string line(const std::string& name, const std::string& about) const;
};

}  // namespace dsv32::harness
