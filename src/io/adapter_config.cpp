#include <algorithm>
#include <cmath>
#include <regex>
#include <set>

#include "src/io/adapter.h"
#include "src/io/fields.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

/// The matcher goes back and forth: patterns of strangers must not make it do so without end. Few
/// unbounded repetitions, and none inside another, take a number of steps that is a small power of
/// the name's length.
bool ends_soon(const std::string& pattern) {
  constexpr int kMost = 4;
  int unbounded = 0;
  std::vector<bool> repeats = {false};  // of the open groups: a repetition was seen inside
  bool closed_repeats = false;          // of the group that has just ended
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    const bool group_ended = i > 0 && pattern[i - 1] == ')';
    if (c == '\\') {
      ++i;
    } else if (in_class || c == '[') {
      in_class = c != ']';
    } else if (c == '(') {
      repeats.push_back(false);
    } else if (c == ')' && repeats.size() > 1) {
      closed_repeats = repeats.back();
      repeats.pop_back();
      if (closed_repeats) repeats.back() = true;
    } else if (c == '*' || c == '+' || c == '{') {
      if ((group_ended && closed_repeats) || ++unbounded > kMost) return false;
      repeats.back() = true;
    }
  }
  return true;
}

constexpr int64_t kMaxRank = 1 << 16;
constexpr const char* kAllLinear = "all-linear";

/// Fields that change nothing here, whatever they say.
const std::set<std::string>& ignored_fields() {
  static const std::set<std::string> names = {"auto_mapping",   "base_model_name_or_path",
                                              "inference_mode", "init_lora_weights",
                                              "loftq_config",   "megatron_core",
                                              "peft_version",   "qalora_group_size",
                                              "revision",       "runtime_config",
                                              "task_type",      "ensure_weight_tying",
                                              "eva_config",     "corda_config",
                                              "lora_ga_config"};
  return names;
}

const std::set<std::string>& read_fields() {
  static const std::set<std::string> names = {"peft_type",
                                              "r",
                                              "lora_alpha",
                                              "lora_dropout",
                                              "bias",
                                              "rank_pattern",
                                              "alpha_pattern",
                                              "target_modules",
                                              "target_parameters"};
  return names;
}

/// Fields of which any value but "off" makes another function, or another set of modules.
const std::set<std::string>& off_fields() {
  static const std::set<std::string> names = {
      "use_dora",        "use_rslora",          "use_qalora",
      "use_bdlora",      "fan_in_fan_out",      "lora_bias",
      "modules_to_save", "layers_to_transform", "layers_pattern",
      "exclude_modules", "layer_replication",   "trainable_token_indices",
      "megatron_config", "arrow_config",        "kasa_config",
      "velora_config",   "monteclora_config",   "alora_invocation_tokens"};
  return names;
}

bool is_off(const Json& value) {
  return value.is_null() || value == false || (value.is_structured() && value.empty());
}

/// As peft matches a target: the whole name, or its end behind a dot.
bool ends_like(const std::string& name, const std::string& target) {
  return name == target || name.ends_with("." + target);
}

class ConfigReader {
 public:
  ConfigReader(const Json& json, const ModelConfig& config, std::string where)
      : json_(json), config_(config), where_(std::move(where)), fields_(json, where_) {}

  AdapterConfig read() {
    check_fields();
    check_kind();
    const int64_t rank = positive(fields_.integer("r"), "r");
    const double alpha = positive(fields_.number("lora_alpha"), "lora_alpha");
    LoraTargets all{.experts = true, .rank = rank, .alpha = alpha};
    for (LoraModule& module : lora_modules(config_, all))
      if (is_target(module)) out_.modules.push_back(with_patterns(std::move(module)));
    warn_of_idle_targets();
    if (out_.modules.empty())
      refuse({.where = where_,
              .what = "target_modules",
              .expected = "modules of this model",
              .got = "none of them"});
    return std::move(out_);
  }

 private:
  [[noreturn]] void wrong(const std::string& what, const std::string& expected,
                          const std::string& got) const {
    refuse({.where = where_, .what = what, .expected = expected, .got = got});
  }

  void check_fields() {
    for (const auto& [name, value] : json_.items()) {
      if (off_fields().count(name) != 0) {
        if (!is_off(value)) wrong(name, "off: this version reads plain LoRA", kind_of(value));
      } else if (ignored_fields().count(name) == 0 && read_fields().count(name) == 0) {
        out_.warnings.push_back("unknown field " + printable(name) + " is ignored");
      }
    }
  }

  void check_kind() {
    if (fields_.text("peft_type") != "LORA")
      wrong("peft_type", "\"LORA\"", kind_of(json_.at("peft_type")));
    if (const Json* bias = fields_.find("bias"); bias && *bias != "none")
      wrong("bias", "\"none\"", kind_of(*bias));
    const double dropout = fields_.number_or("lora_dropout", 0);
    if (!(dropout >= 0 && dropout < 1))
      wrong("lora_dropout", "a number in [0, 1)", canonical_json(json_.at("lora_dropout")));
    if (dropout > 0)
      out_.warnings.push_back("lora_dropout " + canonical_json(Json(dropout)) +
                              " is taken as 0: dropout is random, so it cannot be compared");
  }

  template <typename Number>
  Number positive(Number value, const std::string& name) const {
    if (value > 0 && static_cast<double>(value) <= kMaxRank) return value;
    wrong(name, "a number from 1 to " + std::to_string(kMaxRank), canonical_json(Json(value)));
  }

  /// nullptr for an absent field; every entry a string.
  const Json* strings(const std::string& name) const {
    const Json* list = fields_.find(name);
    if (list == nullptr) return nullptr;
    const auto is_string = [](const Json& entry) { return entry.is_string(); };
    if (!list->is_array() || !std::all_of(list->begin(), list->end(), is_string))
      fields_.wrong(name, "a list of names", *list);
    return list;
  }

  bool is_target(const LoraModule& module) {
    if (module.is_fused()) return in_list("target_parameters", module.name);
    const Json* targets = fields_.find("target_modules");
    if (targets == nullptr || !targets->is_string()) return in_list("target_modules", module.name);
    const std::string pattern = targets->get<std::string>();
    return pattern == kAllLinear || matches(pattern, module.name, "target_modules");
  }

  bool in_list(const std::string& field, const std::string& module) {
    const Json* targets = strings(field);
    if (targets == nullptr) return false;
    bool found = false;
    for (const Json& entry : *targets) {
      const std::string target = entry.get<std::string>();
      if (!ends_like(module, target)) continue;
      used_.insert(target);
      found = true;
    }
    return found;
  }

  void warn_of_idle_targets() {
    for (const char* field : {"target_modules", "target_parameters"}) {
      const Json* targets = fields_.find(field);
      if (targets == nullptr || !targets->is_array()) continue;
      for (const Json& entry : *targets) {
        const std::string target = entry.get<std::string>();
        if (used_.count(target) != 0) continue;
        out_.warnings.push_back(std::string(field) + ": " + printable(target) +
                                " is no module of this model that can carry an adapter");
      }
    }
  }

  bool matches(const std::string& pattern, const std::string& name,
               const std::string& field) const {
    constexpr size_t kMaxPattern = 1000;
    if (pattern.size() > kMaxPattern) wrong(field, "a pattern of 1000 characters or less", "more");
    if (!ends_soon(pattern))
      wrong(field, "at most 4 unbounded repetitions (* + {n,}), none of them inside another",
            "\"" + printable(pattern) + "\"");
    try {
      return std::regex_match(name, std::regex(pattern));
    } catch (const std::regex_error&) {
      wrong(field, "a regular expression", "\"" + printable(pattern) + "\"");
    }
  }

  /// As peft: a pattern fits the end of a name, behind a dot.
  const Json* pattern_value(const std::string& field, const std::string& module) const {
    const Json* patterns = fields_.find(field);
    if (patterns == nullptr) return nullptr;
    if (!patterns->is_object()) fields_.wrong(field, "an object", *patterns);
    for (const auto& [pattern, value] : patterns->items())
      if (matches("(.*\\.)?(" + pattern + ")", module, field)) return &value;
    return nullptr;
  }

  LoraModule with_patterns(LoraModule module) const {
    if (const Json* rank = pattern_value("rank_pattern", module.name)) {
      if (!rank->is_number_integer()) fields_.wrong("rank_pattern", "integers", *rank);
      module.rank = positive(rank->get<int64_t>(), "rank_pattern");
    }
    if (const Json* alpha = pattern_value("alpha_pattern", module.name)) {
      if (!alpha->is_number()) fields_.wrong("alpha_pattern", "numbers", *alpha);
      module.alpha = positive(alpha->get<double>(), "alpha_pattern");
    }
    return module;
  }

  const Json& json_;
  const ModelConfig& config_;
  std::string where_;
  Fields fields_;
  std::set<std::string> used_;
  AdapterConfig out_;
};

std::string leaf(const std::string& path) { return path.substr(path.rfind('.') + 1); }

/// Short names where every module of that name is meant, whole paths where not.
Json target_names(const ModelConfig& config, const std::vector<LoraModule>& modules, bool fused) {
  std::set<std::string> meant, left_out, targets;
  for (const LoraModule& module : modules) meant.insert(module.name);
  for (const LoraModule& module : lora_modules(config, {.experts = true}))
    if (module.is_fused() == fused && meant.count(module.name) == 0)
      left_out.insert(leaf(module.name));
  for (const LoraModule& module : modules) {
    if (module.is_fused() != fused) continue;
    const std::string name = (fused ? "mlp.experts." : "") + leaf(module.name);
    targets.insert(left_out.count(leaf(module.name)) == 0 ? name : module.name);
  }
  return targets;
}

/// 16, not 16.0: peft declares alpha as an integer.
Json plain_number(double value) {
  const auto integer = static_cast<int64_t>(value);
  return static_cast<double>(integer) == value ? Json(integer) : Json(value);
}

std::string escaped(const std::string& name) {
  return std::regex_replace(name, std::regex("\\."), "\\.");
}

}  // namespace

AdapterConfig parse_adapter_config(const std::string& text, const ModelConfig& config,
                                   const std::string& where) {
  const Json json = parse_json(text, where);
  if (!json.is_object())
    refuse({.where = where, .what = "JSON", .expected = "an object", .got = kind_of(json)});
  return ConfigReader(json, config, where).read();
}

std::string adapter_config_text(const ModelConfig& config, const std::vector<LoraModule>& modules) {
  const LoraModule& usual = modules.front();
  Json ranks = Json::object(), alphas = Json::object();
  for (const LoraModule& module : modules) {
    if (module.rank != usual.rank) ranks[escaped(module.name)] = module.rank;
    if (module.alpha != usual.alpha) alphas[escaped(module.name)] = plain_number(module.alpha);
  }
  const Json parameters = target_names(config, modules, true);
  const Json json = {{"peft_type", "LORA"},
                     {"task_type", "CAUSAL_LM"},
                     {"base_model_name_or_path", nullptr},
                     {"inference_mode", true},
                     {"bias", "none"},
                     {"r", usual.rank},
                     {"lora_alpha", plain_number(usual.alpha)},
                     {"lora_dropout", 0.0},
                     {"rank_pattern", ranks},
                     {"alpha_pattern", alphas},
                     {"target_modules", target_names(config, modules, false)},
                     {"target_parameters", parameters.empty() ? Json() : parameters}};
  return json.dump(2) + "\n";
}

}  // namespace dsv32::io
