#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// The names of checks: one grammar for the model's taps and for all that training suites ask.
/// docs/report.md lists them. A name holds no blank, so that a -k filter is one word.
namespace dsv32 {

/// Which part of the work a check looks at.
enum class CheckScope {
  /// One pass of the model: "layers.0.ix.q", "loss.lm", "grad.WEIGHT", "dtap.layers.0.ix.q".
  model,
  /// One step of a training: "step.7.loss", "step.7.grad.WEIGHT", "step.7.update.WEIGHT".
  step,
  /// Every judged step, each from the oracle's state; the worst one is told: "steps.loss",
  /// "steps.update.WEIGHT". "steps" alone says which step and check fail first.
  steps,
  /// A whole training: "curve.loss", "curve.grad_norm.lm", "curve.loss.falls".
  curve,
  /// What a training leaves: "end.param.WEIGHT".
  end,
  /// A rule about no number of the model: "recipe", "load.weights".
  rule,
};

std::string to_string(CheckScope scope);

/// A check's name in its parts.
struct CheckName {
  CheckScope scope = CheckScope::rule;
  std::optional<int64_t> step = {};  // of scope `step`
  /// "layers.0.ix.q", "grad", "update", "param", "loss", "loss.falls", "recipe"; empty for "steps".
  std::string what;
  /// Whose: a weight after "grad", "update" and "param", an optimizer group, a rank; may be empty.
  std::string of = {};

  bool operator==(const CheckName&) const = default;
};

/// nullopt for a name outside the grammar.
std::optional<CheckName> parse_check(const std::string& name);
/// Of a verdict of ours, whose name is one. Throws Error (internal) for a name outside the grammar.
CheckName check_of(const std::string& name);
/// The inverse of parse_check. Throws Error (internal) for parts outside the grammar.
std::string to_string(const CheckName& name);

/// Names by their scope; each throws like to_string.
std::string step_name(int64_t step, std::string_view what, std::string_view of = "");
std::string steps_name(std::string_view what = "", std::string_view of = "");
std::string curve_name(std::string_view what, std::string_view of = "");
std::string end_name(std::string_view what, std::string_view of = "");
std::string rule_name(std::string_view what, std::string_view of = "");
/// The check about a tap of a trace file: "train.loss" is "curve.loss", "param.WEIGHT" is
/// "end.param.WEIGHT"; the others are named as the tap.
std::string check_of_tap(const std::string& tap);

/// The layer that a check is about: a layer tap's, or its weight's.
std::optional<int64_t> check_layer(const std::string& name);
/// "grad.WEIGHT" of one pass of the model.
bool is_gradient_check(const std::string& name);

/// The names of every scope but `model`, as docs/report.md writes them: "step.N.grad.WEIGHT",
/// "curve.grad_norm[.GROUP]".
std::vector<std::string> check_grammar();

}  // namespace dsv32
