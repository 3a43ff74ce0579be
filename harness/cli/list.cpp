#include <iostream>
#include <sstream>

#include "harness/cli/commands.h"
#include "harness/cli/names.h"
#include "harness/report/limits.h"
#include "harness/report/listing.h"
#include "harness/training/step/updates.h"
#include "harness/training/suite.h"
#include "src/io/io.h"
#include "src/model/dialect.h"
#include "src/model/trace.h"
#include "src/model/weights.h"

namespace dsv32::harness {
namespace {

Listing list_suites() {
  Listing listing;
  for (const SuiteInfo& suite : suites()) listing.push_back({suite.name, suite.about});
  return listing;
}

std::string describe(const Case& c) {
  std::ostringstream text;
  text << "B " << c.B << ", S " << c.S << ", pad " << c.pad << ", golden " << c.golden
       << (c.sparse ? ", sparse" : "") << (c.training ? ", training only" : "") << ": "
       << c.purpose;
  return text.str();
}

Listing list_cases() {
  Listing listing;
  for (const Case& c : io::cases()) listing.push_back({c.name, describe(c)});
  return listing;
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

Listing list_taps() {
  Listing listing;
  for (const TapInfo& tap : tap_vocabulary()) {
    const std::string prefix = tap.per_layer ? "layers.N." : "";
    listing.push_back({prefix + std::string(tap.name), std::string(shape_of(tap))});
  }
  const std::string of_weight(shape_of(TapKind::gradient));
  listing.push_back({"grad.<weight>", of_weight});
  listing.push_back({"dtap.<tap>", "the tap's shape: the gradient by it"});
  listing.push_back({"step.N.update.<weight>", of_weight});
  return listing;
}

Listing list_dialects() {
  const std::string toggle =
      "toggles, alone or in a sum (spec-1+kl-sum-over-layers, hf+k-norm-eps)";
  Listing listing;
  for (const Dialect& dialect : dialect_presets())
    listing.push_back({dialect.name, dialect_consequence(dialect.name)});
  for (const KnownBug& bug : known_bugs()) listing.push_back({bug.name, bug.description, toggle});
  for (const KnownBug& bug : fp8_toggles())
    listing.push_back({bug.name, bug.description, "toggles of 16-bit models"});
  return listing;
}

/// The catalogue of the diagnosis.
Listing list_bugs() {
  Listing listing;
  for (const KnownBug& bug : known_bugs())
    listing.push_back({bug.name, bug.description + " (first seen in " + bug.first_tap + ")"});
  for (const auto& [name, words] : step_fault_names())
    listing.push_back({name, words + " (seen in step.N.update.*)"});
  return listing;
}

Listing list_configs() {
  Listing listing;
  for (const std::string& name : io::config_names()) {
    const ModelConfig config = io::read_config(name);
    std::ostringstream about;
    about << config.num_hidden_layers << " layers, hidden " << config.hidden_size << ", "
          << config.num_attention_heads << " heads, " << config.n_routed_experts
          << " experts, top-k " << config.index_topk;
    listing.push_back({name, about.str()});
  }
  return listing;
}

constexpr char kLimits[] = "limits";  // tables of numbers, with a form of their own

Listing list_group(const std::string& group) {
  if (group == "suites") return list_suites();
  if (group == "cases") return list_cases();
  if (group == "taps") return list_taps();
  if (group == "dialects") return list_dialects();
  return group == "bugs" ? list_bugs() : list_configs();
}

std::string group_text(const std::string& group) {
  return group == kLimits ? limits_text() : listing_text(list_group(group));
}

/// Of all groups: but for the limits, which are asked for by name.
std::string group_json(const std::vector<std::string>& groups) {
  std::vector<std::pair<std::string, Listing>> listings;
  for (const std::string& group : groups)
    if (group != kLimits) listings.emplace_back(group, list_group(group));
  return listing_json(listings);
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
  const bool one = !options.arguments.empty();
  const std::vector<std::string>& groups = one ? options.arguments : list_groups();
  if (options.json) {
    std::cout << (one && groups.front() == kLimits ? limits_json() : group_json(groups));
    return ExitCode::ok;
  }
  for (const std::string& group : groups)
    std::cout << (one ? "" : group + ":\n") << group_text(group);
  return ExitCode::ok;
}

}  // namespace dsv32::harness
