#include <charconv>
#include <map>

#include "harness/cases/implementations.h"
#include "harness/training/sharded/run.h"
#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/training/rank_env.h"

namespace dsv32::harness {
namespace {

constexpr const char* kKinds[] = {"all", "frozen", "lora"};

[[noreturn]] void refuse(const std::string& what, const std::string& expected,
                         const std::string& got) {
  throw Error(ExitCode::usage,
              {.where = "sharded-rank", .what = what, .expected = expected, .got = got});
}

int64_t number(const std::string& name, const std::string& text) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || value < 0) refuse(name, "a number", text);
  return value;
}

ShardedKind kind_of(const std::string& text) {
  for (int i = 0; i < 3; ++i)
    if (text == kKinds[i]) return static_cast<ShardedKind>(i);
  refuse("kind", "all, frozen or lora", text);
}

void set(ShardedPlan& plan, const std::string& name, const std::string& value) {
  if (name == "impl") {
    plan.impl = value;
  } else if (name == "ranks") {
    plan.ranks = static_cast<int>(number(name, value));
  } else if (name == "steps") {
    plan.steps = number(name, value);
  } else if (name == "accumulation") {
    plan.accumulation = number(name, value);
  } else if (name == "kind") {
    plan.kind = kind_of(value);
  } else if (name == "bug") {
    plan.bug = static_cast<training::Bug>(number(name, value));
  } else if (name == "perturbation") {
    plan.perturbation_seed = static_cast<uint64_t>(number(name, value));
  } else if (name == "device") {
    plan.device = value;
  } else if (name == "fault") {
    plan.fault = value;
  } else if (name == "fault-step") {
    plan.fault_step = number(name, value);
  } else {
    refuse("word", "a known name", name);
  }
}

}  // namespace

std::vector<std::string> ShardedPlan::words() const {
  std::vector<std::string> list = {case_name,
                                   "impl=" + impl,
                                   "ranks=" + std::to_string(ranks),
                                   "steps=" + std::to_string(steps),
                                   "accumulation=" + std::to_string(accumulation),
                                   std::string("kind=") + kKinds[static_cast<int>(kind)],
                                   "bug=" + std::to_string(static_cast<int>(bug)),
                                   "perturbation=" + std::to_string(perturbation_seed),
                                   "device=" + device};
  if (!fault.empty()) {
    list.push_back("fault=" + fault);
    list.push_back("fault-step=" + std::to_string(fault_step));
  }
  return list;
}

ShardedPlan ShardedPlan::from_words(const std::vector<std::string>& words) {
  if (words.empty()) refuse("case", "the name of a case", "nothing");
  ShardedPlan plan{.case_name = io::find_case(words.front()).name};
  for (size_t i = 1; i < words.size(); ++i) {
    const size_t equals = words[i].find('=');
    if (equals == std::string::npos) refuse("word", "name=value", words[i]);
    set(plan, words[i].substr(0, equals), words[i].substr(equals + 1));
  }
  return plan;
}

std::string describe(const ShardedPlan& plan) {
  std::string text = std::to_string(plan.ranks) + (plan.ranks == 1 ? " rank" : " ranks");
  if (plan.accumulation > 1) text += ", accumulation " + std::to_string(plan.accumulation);
  if (plan.kind == ShardedKind::frozen) text += ", frozen indexer";
  if (plan.kind == ShardedKind::lora) text += ", dual LoRA";
  return text;
}

Subject sharded_subject(const ShardedPlan& plan) {
  return implementation_subject(plan.impl, ", " + describe(plan));
}

double rank_timeout() {
  constexpr double kDefault = 60, kLongest = 24 * 3600;
  const auto text = training::process_variable("DSV32_RANK_TIMEOUT");
  if (!text) return kDefault;
  double value = 0;
  const char* end = text->data() + text->size();
  const auto [stop, error] = std::from_chars(text->data(), end, value);
  if (error == std::errc() && stop == end && value >= 1 && value <= kLongest) return value;
  throw Error(ExitCode::environment, {.where = "environment variable DSV32_RANK_TIMEOUT",
                                      .what = "not usable",
                                      .expected = "seconds, from 1 to 86400",
                                      .got = "\"" + *text + "\""});
}

std::map<std::string, std::string> sharded_digests(const ShardedPlan& plan) {
  constexpr size_t kShown = 16;
  const Case& c = io::find_case(plan.case_name);
  std::string recipe = io::case_json(c);
  for (const std::string& word : ShardedPlan{.case_name = plan.case_name,
                                 .impl = plan.impl,
                                 .ranks = plan.ranks,
                                 .steps = plan.steps,
                                 .accumulation = plan.accumulation,
                                 .kind = plan.kind}
                                     .words())
    recipe += "\n" + word;
  return {{"config", c.name + " " + io::sha256_hex(recipe.data(), recipe.size()).substr(0, kShown)},
          {"seed", std::to_string(c.seed) + " " + std::to_string(plan.perturbation_seed)},
          {"program", io::sha256_file("/proc/self/exe").substr(0, kShown)}};
}

}  // namespace dsv32::harness
