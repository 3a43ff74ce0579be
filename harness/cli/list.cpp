#include <iostream>
#include <sstream>

#include "harness/cli/commands.h"
#include "harness/cli/names.h"
#include "harness/report/limits.h"
#include "harness/report/text.h"
#include "harness/training/step/updates.h"
#include "harness/training/suite.h"
#include "src/io/io.h"
#include "src/model/dialect.h"
#include "src/model/trace.h"
#include "src/model/weights.h"

namespace dsv32::harness {
namespace {

constexpr size_t kNameWidth = 24;  // "layers.N.router.weights"

std::string row(const std::string& name, const std::string& about) {
  return "  " + padded(name, kNameWidth) + " " + about + "\n";
}

std::string list_suites() {
  std::string text;
  for (const SuiteInfo& suite : suites()) text += row(suite.name, suite.about);
  return text;
}

std::string describe(const Case& c) {
  std::ostringstream text;
  text << "B " << c.B << ", S " << c.S << ", pad " << c.pad << ", golden " << c.golden
       << (c.sparse ? ", sparse" : "") << (c.training ? ", training only" : "") << ": "
       << c.purpose;
  return text.str();
}

std::string list_cases() {
  std::string text;
  for (const Case& c : io::cases()) text += row(c.name, describe(c));
  return text;
}

std::string_view shape_of(TapKind kind) {
  switch (kind) {
    case TapKind::token:
      return "[B,S,...]";
    case TapKind::key:
      return "[B,T,D]";
    case TapKind::attention:
      return "[B,H,S,T]";
    case TapKind::scores:
    case TapKind::keys:
      return "[B,S,T]";
    case TapKind::topk:
      return "[B,S,index_topk] set";
    case TapKind::experts:
      return "[B,S,K] set";
    case TapKind::scalar:
      return "[]";
    case TapKind::series:
      return "[steps]";
    case TapKind::gradient:
      return "the weight's shape";
  }
  return "";
}

std::string_view shape_of(const TapInfo& tap) {
  if (tap.name == "gen.tokens") return "[B,steps]";
  if (tap.name == "gen.logits") return "[B,steps,vocab]";
  return shape_of(tap.kind);
}

std::string list_taps() {
  std::string text;
  for (const TapInfo& tap : tap_vocabulary()) {
    const std::string prefix = tap.per_layer ? "layers.N." : "";
    text += row(prefix + std::string(tap.name), std::string(shape_of(tap)));
  }
  text += row("grad.<weight>", std::string(shape_of(TapKind::gradient)));
  text += row("dtap.<tap>", "the tap's shape: the gradient by it");
  return text + row("step.N.update.<weight>", std::string(shape_of(TapKind::gradient)));
}

std::string list_dialects() {
  std::string text;
  for (const Dialect& dialect : dialect_presets()) {
    text += row(dialect.name, dialect_consequence(dialect.name));
  }
  text += "  toggles, alone or in a sum (spec-1+kl-sum-over-layers, hf+k-norm-eps):\n";
  for (const KnownBug& bug : known_bugs()) text += row(bug.name, bug.description);
  text += "  toggles of 16-bit models:\n";
  for (const KnownBug& bug : fp8_toggles()) text += row(bug.name, bug.description);
  return text;
}

/// The catalogue of the diagnosis.
std::string list_bugs() {
  std::string text;
  for (const KnownBug& bug : known_bugs())
    text += row(bug.name, bug.description + " (first seen in " + bug.first_tap + ")");
  for (const auto& [name, words] : step_fault_names())
    text += row(name, words + " (seen in step.N.update.*)");
  return text;
}

std::string list_configs() {
  std::string text;
  for (const std::string& name : io::config_names()) {
    const ModelConfig config = io::read_config(name);
    std::ostringstream about;
    about << config.num_hidden_layers << " layers, hidden " << config.hidden_size << ", "
          << config.num_attention_heads << " heads, " << config.n_routed_experts
          << " experts, top-k " << config.index_topk;
    text += row(name, about.str());
  }
  return text;
}

std::string list_group(const std::string& group) {
  if (group == "suites") return list_suites();
  if (group == "cases") return list_cases();
  if (group == "taps") return list_taps();
  if (group == "dialects") return list_dialects();
  if (group == "bugs") return list_bugs();
  if (group == "limits") return limits_text();
  return list_configs();
}

}  // namespace

const std::vector<std::string>& list_groups() {
  static const std::vector<std::string> groups = {"suites", "cases",  "taps",   "dialects",
                                                  "bugs",   "limits", "configs"};
  return groups;
}

const std::vector<SuiteInfo>& suites() {
  static const std::vector<SuiteInfo> all = [] {
    std::vector<SuiteInfo> rows = {
        {"forward", "every tap, every top-k set, every expert choice, the loss"},
        {"backward", "every gradient of the loss"}};
    for (const TrainingSuite& suite : training_suites())
      rows.push_back({suite.name, suite.about + " (" + alternatives(suite.cases) + ")"});
    return rows;
  }();
  return all;
}

ExitCode list_command(const Options& options) {
  if (options.json) {
    if (options.arguments != std::vector<std::string>{"limits"})
      throw Error(ExitCode::usage,
                  {.where = "list",
                   .what = "--json",
                   .expected = "the group limits",
                   .got = options.arguments.empty() ? "no group" : options.arguments.front()});
    std::cout << limits_json();
    return ExitCode::ok;
  }
  if (!options.arguments.empty()) {
    std::cout << list_group(options.arguments.front());
    return ExitCode::ok;
  }
  for (const std::string& group : list_groups()) std::cout << group << ":\n" << list_group(group);
  return ExitCode::ok;
}

}  // namespace dsv32::harness
