#include "src/model/check_name.h"

#include <algorithm>
#include <charconv>

#include "src/model/errors.h"
#include "src/model/trace.h"
#include "src/model/weights.h"

namespace dsv32 {
namespace {

/// What follows `what` and a dot; a group and a recipe may be left out.
enum class Tail { none, weight, group, recipe, rank };

struct Row {
  CheckScope scope;
  std::string_view what;
  Tail tail = Tail::none;
};

constexpr Row kRows[] = {
    {CheckScope::step, "loss"},
    {CheckScope::step, "kl"},
    {CheckScope::step, "grad_norm", Tail::group},
    {CheckScope::step, "grad", Tail::weight},
    {CheckScope::step, "gradients"},  // of all weights
    {CheckScope::step, "update", Tail::weight},
    {CheckScope::step, "updates", Tail::group},  // of all weights, of a group
    {CheckScope::step, "untouched"},             // weights without a gradient
    {CheckScope::step, "ranks"},                 // all of them have the same parameters
    {CheckScope::step, "rank", Tail::rank},      // this one has those of rank 0
    {CheckScope::steps, ""},
    {CheckScope::steps, "loss"},
    {CheckScope::steps, "kl"},
    {CheckScope::steps, "grad_norm"},
    {CheckScope::steps, "grad", Tail::weight},
    {CheckScope::steps, "update", Tail::weight},
    {CheckScope::curve, "loss"},
    {CheckScope::curve, "loss.falls"},
    {CheckScope::curve, "loss.band"},  // of clean runs
    {CheckScope::curve, "kl"},
    {CheckScope::curve, "kl.falls"},
    {CheckScope::curve, "grad_norm", Tail::group},
    {CheckScope::curve, "recall"},  // of the true top-k
    {CheckScope::end, "param", Tail::weight},
    {CheckScope::end, "params"},
    {CheckScope::end, "logits.adapter"},
    {CheckScope::end, "logits.merged"},
    {CheckScope::rule, "golden.file", Tail::recipe},
    {CheckScope::rule, "load.dtype"},
    {CheckScope::rule, "load.weights"},
    {CheckScope::rule, "run.finished"},
    {CheckScope::rule, "source.generated"},        // files made from others are what those say
    {CheckScope::rule, "taps"},                    // there is one that can be judged
    {CheckScope::rule, "result"},                  // the logits or a loss are there
    {CheckScope::rule, "world.rank", Tail::rank},  // what it has in common with others is theirs
    {CheckScope::rule, "evidence"},                // more than a loss alone
    {CheckScope::rule, "selection.exercised"},
    {CheckScope::rule, "recipe"},
    {CheckScope::rule, "parameters.trainable"},
    {CheckScope::rule, "parameters.adapted"},
    {CheckScope::rule, "parameters.moved"},
    {CheckScope::rule, "labels.mean"},
    {CheckScope::rule, "labels.masked.loss"},
    {CheckScope::rule, "labels.masked.gradients"},
    {CheckScope::rule, "frozen.grad", Tail::weight},
    {CheckScope::rule, "unfrozen.grad", Tail::weight},
    {CheckScope::rule, "detached.hidden"},
    {CheckScope::rule, "detached.q_latent"},
    {CheckScope::rule, "detached.target"},
    {CheckScope::rule, "gradient_paths"},
    {CheckScope::rule, "lora.no_op"},
    {CheckScope::rule, "lora.first_gradients"},
    {CheckScope::rule, "lora.lm_alone"},
    {CheckScope::rule, "lora.kl_alone"},
    {CheckScope::rule, "lora.scale"},
    {CheckScope::rule, "lora.merge"},
    {CheckScope::rule, "lora.base"},
    {CheckScope::rule, "optimizer.bytes"},
    {CheckScope::rule, "optimizer.integers"},
};

constexpr std::string_view kStep = "step.", kSteps = "steps", kCurve = "curve.", kEnd = "end.";

std::string joined(std::string_view a, std::string_view b) {
  const bool both = !a.empty() && !b.empty();
  return std::string(a) + (both ? "." : "") + std::string(b);
}

/// A count written as std::to_string writes it, from the front of `text`, which loses it.
std::optional<int64_t> take_count(std::string_view& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view digits(text.data(), static_cast<size_t>(end - text.data()));
  if (error != std::errc() || value < 0 || digits != std::to_string(value)) return std::nullopt;
  text.remove_prefix(digits.size());
  return value;
}

bool is_word(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
}

bool is_weight(std::string_view text) {
  const auto tap = parse_tap("grad." + std::string(text));
  return tap && text.find(' ') == std::string_view::npos;
}

bool follows(Tail tail, std::string_view of) {
  switch (tail) {
    case Tail::none:
      return of.empty();
    case Tail::weight:
      return is_weight(of);
    case Tail::group:
    case Tail::recipe:
      return of.empty() || is_word(of);
    case Tail::rank:
      return take_count(of) && of.empty();
  }
  return false;
}

/// What stands behind the scope: the row that it matches.
std::optional<CheckName> parse_row(CheckScope scope, std::string_view text) {
  for (const Row& row : kRows) {
    if (row.scope != scope || !text.starts_with(row.what)) continue;
    std::string_view of = text.substr(row.what.size());
    if (!of.empty() && !of.starts_with('.')) continue;
    if (of == ".") continue;
    if (!of.empty()) of.remove_prefix(1);
    if (follows(row.tail, of))
      return CheckName{.scope = scope, .what = std::string(row.what), .of = std::string(of)};
  }
  return std::nullopt;
}

std::optional<CheckName> parse_step(std::string_view text) {
  const std::optional<int64_t> step = take_count(text);
  if (!step || !text.starts_with('.')) return std::nullopt;
  std::optional<CheckName> name = parse_row(CheckScope::step, text.substr(1));
  if (name) name->step = step;
  return name;
}

/// "steps" and "steps.WHAT".
std::optional<CheckName> parse_steps(std::string_view text) {
  if (!text.empty() && (!text.starts_with('.') || text.size() == 1)) return std::nullopt;
  return parse_row(CheckScope::steps, text.substr(text.empty() ? 0 : 1));
}

std::optional<CheckName> parse_model(const std::string& name) {
  if (parse_slope(name)) return CheckName{.scope = CheckScope::model, .what = name};
  const std::optional<TapName> tap = parse_tap(name);
  if (!tap || check_of_tap(name) != name || name.find(' ') != std::string::npos)
    return std::nullopt;
  if (tap->info.kind != TapKind::gradient)
    return CheckName{.scope = CheckScope::model, .what = name};
  const std::string grad(tap->info.name);
  return CheckName{.scope = CheckScope::model, .what = grad, .of = name.substr(grad.size() + 1)};
}

std::string prefix_of(const CheckName& name) {
  switch (name.scope) {
    case CheckScope::step:
      return std::string(kStep) + std::to_string(name.step.value_or(-1));
    case CheckScope::steps:
      return std::string(kSteps);
    case CheckScope::curve:
      return "curve";
    case CheckScope::end:
      return "end";
    case CheckScope::model:
    case CheckScope::rule:
      return "";
  }
  return "";
}

std::string tail_text(Tail tail) {
  switch (tail) {
    case Tail::none:
      return "";
    case Tail::weight:
      return ".WEIGHT";
    case Tail::group:
      return "[.GROUP]";
    case Tail::recipe:
      return "[.RECIPE]";
    case Tail::rank:
      return ".RANK";
  }
  return "";
}

[[noreturn]] void refuse(const std::string& name) {
  throw Error(ExitCode::internal, {.where = "name of a check",
                                   .what = "grammar",
                                   .expected = "a name of docs/report.md",
                                   .got = "\"" + name + "\""});
}

}  // namespace

std::optional<CheckName> parse_check(const std::string& name) {
  const std::string_view text = name;
  if (text.starts_with(kStep)) return parse_step(text.substr(kStep.size()));
  if (text.starts_with(kSteps)) return parse_steps(text.substr(kSteps.size()));
  if (text.starts_with(kCurve)) return parse_row(CheckScope::curve, text.substr(kCurve.size()));
  if (text.starts_with(kEnd)) return parse_row(CheckScope::end, text.substr(kEnd.size()));
  if (auto rule = parse_row(CheckScope::rule, text)) return rule;
  return parse_model(name);
}

CheckName check_of(const std::string& name) {
  const std::optional<CheckName> check = parse_check(name);
  if (!check) refuse(name);
  return *check;
}

std::string to_string(CheckScope scope) {
  switch (scope) {
    case CheckScope::model:
      return "model";
    case CheckScope::step:
      return "step";
    case CheckScope::steps:
      return "steps";
    case CheckScope::curve:
      return "curve";
    case CheckScope::end:
      return "end";
    case CheckScope::rule:
      return "rule";
  }
  return "unknown";
}

std::string to_string(const CheckName& name) {
  const std::string text = joined(joined(prefix_of(name), name.what), name.of);
  if (!parse_check(text)) refuse(text);
  return text;
}

std::string step_name(int64_t step, std::string_view what, std::string_view of) {
  return to_string({CheckScope::step, step, std::string(what), std::string(of)});
}

std::string steps_name(std::string_view what, std::string_view of) {
  return to_string({CheckScope::steps, {}, std::string(what), std::string(of)});
}

std::string curve_name(std::string_view what, std::string_view of) {
  return to_string({CheckScope::curve, {}, std::string(what), std::string(of)});
}

std::string end_name(std::string_view what, std::string_view of) {
  return to_string({CheckScope::end, {}, std::string(what), std::string(of)});
}

std::string rule_name(std::string_view what, std::string_view of) {
  return to_string({CheckScope::rule, {}, std::string(what), std::string(of)});
}

std::string check_of_tap(const std::string& tap) {
  const std::string series = "train.", parameter = "param.";
  if (tap.starts_with(series)) return std::string(kCurve) + tap.substr(series.size());
  return tap.starts_with(parameter) ? std::string(kEnd) + tap : tap;
}

std::optional<int64_t> check_layer(const std::string& name) {
  const std::optional<CheckName> check = parse_check(name);
  if (!check) return std::nullopt;
  if (const auto slope = parse_slope(name)) return slope->layer;
  if (check->scope == CheckScope::model && check->of.empty()) return parse_tap(name)->layer;
  return weight_layer(check->of);
}

bool is_gradient_check(const std::string& name) {
  const std::optional<CheckName> check = parse_check(name);
  return check && check->scope == CheckScope::model && check->what == "grad";
}

std::vector<std::string> check_grammar() {
  std::vector<std::string> names;
  for (const Row& row : kRows) {
    const CheckName scope{.scope = row.scope, .step = 0};
    const std::string prefix = row.scope == CheckScope::step ? "step.N" : prefix_of(scope);
    names.push_back(joined(prefix, row.what) + tail_text(row.tail));
  }
  return names;
}

}  // namespace dsv32
