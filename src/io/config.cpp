#include "src/io/config.h"

#include <algorithm>
#include <array>
#include <set>

#include "src/io/fields.h"
#include "src/io/io.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

constexpr uint64_t kConfigLimit = uint64_t{1} << 20;  // bytes; released configs have 2 KiB
constexpr int64_t kMaxExperts = int64_t{1} << 18;  // layers x experts; the released model has 15616

struct IntegerField {
  const char* name;
  int64_t ModelConfig::*member;
};
constexpr std::array kIntegers = {
    IntegerField{"vocab_size", &ModelConfig::vocab_size},
    IntegerField{"hidden_size", &ModelConfig::hidden_size},
    IntegerField{"intermediate_size", &ModelConfig::intermediate_size},
    IntegerField{"moe_intermediate_size", &ModelConfig::moe_intermediate_size},
    IntegerField{"num_hidden_layers", &ModelConfig::num_hidden_layers},
    IntegerField{"num_attention_heads", &ModelConfig::num_attention_heads},
    IntegerField{"n_shared_experts", &ModelConfig::n_shared_experts},
    IntegerField{"n_routed_experts", &ModelConfig::n_routed_experts},
    IntegerField{"num_experts_per_tok", &ModelConfig::num_experts_per_tok},
    IntegerField{"n_group", &ModelConfig::n_group},
    IntegerField{"topk_group", &ModelConfig::topk_group},
    IntegerField{"q_lora_rank", &ModelConfig::q_lora_rank},
    IntegerField{"kv_lora_rank", &ModelConfig::kv_lora_rank},
    IntegerField{"qk_nope_head_dim", &ModelConfig::qk_nope_head_dim},
    IntegerField{"qk_rope_head_dim", &ModelConfig::qk_rope_head_dim},
    IntegerField{"v_head_dim", &ModelConfig::v_head_dim},
    IntegerField{"max_position_embeddings", &ModelConfig::max_position_embeddings},
    IntegerField{"index_n_heads", &ModelConfig::index_n_heads},
    IntegerField{"index_head_dim", &ModelConfig::index_head_dim},
    IntegerField{"index_topk", &ModelConfig::index_topk}};

/// Fields with one value in every DeepSeek-V3.2; another value is another model.
const std::vector<std::pair<std::string, Json>>& fixed_fields() {
  static const std::vector<std::pair<std::string, Json>> fields = {
      {"hidden_act", "silu"},         {"scoring_func", "sigmoid"}, {"topk_method", "noaux_tc"},
      {"attention_bias", false},      {"attention_dropout", 0},    {"mlp_bias", false},
      {"tie_word_embeddings", false}, {"moe_layer_freq", 1},       {"rope_interleave", true}};
  return fields;
}

/// Read by their own functions below.
const std::set<std::string> kRead = {"num_key_value_heads",  "routed_scaling_factor",
                                     "norm_topk_prob",       "first_k_dense_replace",
                                     "mlp_layer_types",      "layer_types",
                                     "rms_norm_eps",         "rope_theta",
                                     "rope_scaling",         "rope_parameters",
                                     "use_sparse_attention", "qk_head_dim",
                                     "num_experts",          "model_type",
                                     "quantization_config"};

/// Known, and without effect on the numbers that are judged.
const std::set<std::string> kIgnored = {"_attn_implementation",
                                        "_name_or_path",
                                        "architectures",
                                        "auto_map",
                                        "aux_loss_alpha",
                                        "bos_token_id",
                                        "chunk_size_feed_forward",
                                        "dtype",
                                        "eos_token_id",
                                        "ep_size",
                                        "head_dim",
                                        "id2label",
                                        "initializer_range",
                                        "is_encoder_decoder",
                                        "label2id",
                                        "num_local_experts",
                                        "num_nextn_predict_layers",
                                        "output_attentions",
                                        "output_hidden_states",
                                        "output_router_logits",
                                        "pad_token_id",
                                        "pretraining_tp",
                                        "problem_type",
                                        "return_dict",
                                        "router_aux_loss_coef",
                                        "seq_aux",
                                        "torch_dtype",
                                        "transformers_version",
                                        "use_cache"};

const std::set<std::string> kRopeFields = {"type",
                                           "rope_type",
                                           "rope_theta",
                                           "factor",
                                           "original_max_position_embeddings",
                                           "beta_fast",
                                           "beta_slow",
                                           "mscale",
                                           "mscale_all_dim",
                                           "truncate",
                                           "attention_factor",
                                           "partial_rotary_factor"};

void check_fixed(const Fields& fields) {
  for (const auto& [name, value] : fixed_fields()) {
    const Json* got = fields.find(name);
    if (got && *got != value)
      fields.wrong(name, kind_of(value) + ", as in every DeepSeek-V3.2", *got);
  }
}

void warn_unknown(const Json& object, ModelConfig& config) {
  for (const auto& [name, value] : object.items())
    if (!is_config_field(name))
      config.warnings.push_back("config: unknown field " + printable(name) + " ignored");
  const auto type = object.find("model_type");
  if (type != object.end() && *type != "deepseek_v32")
    config.warnings.push_back("config: model_type is " + kind_of(*type) +
                              ", expected \"deepseek_v32\"");
}

/// mlp_layer_types: "dense" for the first layers, "sparse" for the others (5.x style).
int64_t dense_prefix(const Fields& fields, const Json& types, int64_t layers) {
  if (!types.is_array()) fields.wrong("mlp_layer_types", "a list", types);
  if (static_cast<int64_t>(types.size()) != layers)
    fields.wrong("mlp_layer_types", std::to_string(layers) + " entries", types.size());
  int64_t dense = 0;
  for (size_t i = 0; i < types.size(); ++i) {
    const std::string entry = "mlp_layer_types[" + std::to_string(i) + "]";
    if (types[i] != "dense" && types[i] != "sparse")
      fields.wrong(entry, "\"dense\" or \"sparse\"", types[i]);
    if (types[i] == "sparse") continue;
    if (dense != static_cast<int64_t>(i))
      fields.wrong(entry, "dense layers before all sparse ones", types[i]);
    ++dense;
  }
  return dense;
}

void read_dense_layers(const Fields& fields, ModelConfig& config) {
  const Json* types = fields.find("mlp_layer_types");
  if (!types) {
    config.first_k_dense_replace = fields.integer("first_k_dense_replace");
    return;
  }
  config.first_k_dense_replace = dense_prefix(fields, *types, config.num_hidden_layers);
  const Json* count = fields.find("first_k_dense_replace");
  if (count && *count != config.first_k_dense_replace)
    fields.wrong("first_k_dense_replace",
                 std::to_string(config.first_k_dense_replace) + ", as mlp_layer_types says",
                 *count);
}

/// transformers calls it indexed_attention from 5.23 on.
void check_layer_types(const Fields& fields) {
  const Json* types = fields.find("layer_types");
  if (!types) return;
  const auto is_sparse = [](const Json& type) {
    return type == "deepseek_sparse_attention" || type == "indexed_attention";
  };
  if (!types->is_array() || !std::all_of(types->begin(), types->end(), is_sparse))
    fields.wrong("layer_types", "\"deepseek_sparse_attention\" in every layer", *types);
}

std::string rope_type(const Fields& rope) {
  const Json *type = rope.find("type"), *rope_type = rope.find("rope_type");
  if (type && rope_type && *type != *rope_type) rope.wrong("type", "the same as rope_type", *type);
  if (rope_type) return rope.text("rope_type");
  return type ? rope.text("type") : "default";
}

/// One rope block (`rope_scaling` or `rope_parameters`). docs/spec.md 1.3.
std::optional<YarnConfig> read_yarn(const Fields& rope) {
  const std::string type = rope_type(rope);
  if (type == "default") {
    if (const Json* factor = rope.find("factor"))
      rope.wrong("factor", "no scaling without a type", *factor);
    return std::nullopt;
  }
  if (type != "yarn") rope.wrong("type", "\"yarn\" or \"default\"", type);
  if (!rope.boolean_or("truncate", true)) rope.wrong("truncate", "true (docs/spec.md 1.3)", false);
  if (const double factor = rope.number_or("attention_factor", 1); factor != 1)
    rope.wrong("attention_factor", "1 (docs/spec.md 1.3)", factor);
  YarnConfig yarn;
  yarn.factor = rope.number("factor");
  yarn.original_max_position_embeddings = rope.integer("original_max_position_embeddings");
  yarn.beta_fast = rope.number_or("beta_fast", yarn.beta_fast);
  yarn.beta_slow = rope.number_or("beta_slow", yarn.beta_slow);
  yarn.mscale = rope.number_or("mscale", yarn.mscale);
  yarn.mscale_all_dim = rope.number_or("mscale_all_dim", 0);
  return yarn;
}

bool same(const std::optional<YarnConfig>& a, const std::optional<YarnConfig>& b) {
  if (!a || !b) return a.has_value() == b.has_value();
  return a->factor == b->factor &&
         a->original_max_position_embeddings == b->original_max_position_embeddings &&
         a->beta_fast == b->beta_fast && a->beta_slow == b->beta_slow && a->mscale == b->mscale &&
         a->mscale_all_dim == b->mscale_all_dim;
}

void read_rope(const Fields& fields, ModelConfig& config) {
  std::optional<double> theta;
  const auto set_theta = [&](const Fields& from, double value) {
    if (theta && *theta != value) from.wrong("rope_theta", "the same value everywhere", value);
    theta = value;
  };
  if (fields.find("rope_theta")) set_theta(fields, fields.number("rope_theta"));
  bool found = false;
  for (const std::string name : {"rope_parameters", "rope_scaling"}) {
    const Json* block = fields.find(name);
    if (!block) continue;
    if (!block->is_object()) fields.wrong(name, "an object", *block);
    const Fields rope(*block, fields.where(), name + ".");
    if (rope.find("rope_theta")) set_theta(rope, rope.number("rope_theta"));
    if (rope.number_or("partial_rotary_factor", 1) != 1)
      rope.wrong("partial_rotary_factor", "1", *rope.find("partial_rotary_factor"));
    for (const auto& [field, value] : block->items())
      if (!kRopeFields.contains(field))
        config.warnings.push_back("config: unknown field " + name + "." + printable(field) +
                                  " ignored");
    const auto yarn = read_yarn(rope);
    if (found && !same(yarn, config.yarn))
      fields.wrong(name, "the same settings as rope_parameters", *block);
    config.yarn = yarn;
    found = true;
  }
  config.rope_theta = theta ? *theta : fields.number("rope_theta");
}

void check_derived(const Fields& fields, const ModelConfig& config) {
  const Json* head_dim = fields.find("qk_head_dim");
  if (head_dim && *head_dim != config.qk_head_dim())
    fields.wrong("qk_head_dim",
                 std::to_string(config.qk_head_dim()) + ", qk_nope_head_dim + qk_rope_head_dim",
                 *head_dim);
  const Json* experts = fields.find("num_experts");
  if (experts && *experts != config.n_routed_experts)
    fields.wrong("num_experts",
                 std::to_string(config.n_routed_experts) + ", the same as n_routed_experts",
                 *experts);
  if (config.n_routed_experts > kMaxExperts / config.num_hidden_layers)
    fields.wrong("n_routed_experts",
                 "at most " + std::to_string(kMaxExperts) + " experts in all layers together",
                 config.n_routed_experts);
}

Json yarn_to_json(const YarnConfig& yarn) {
  return {{"type", "yarn"},
          {"factor", yarn.factor},
          {"original_max_position_embeddings", yarn.original_max_position_embeddings},
          {"beta_fast", yarn.beta_fast},
          {"beta_slow", yarn.beta_slow},
          {"mscale", yarn.mscale},
          {"mscale_all_dim", yarn.mscale_all_dim}};
}

Json fp8_to_json(const Fp8Config& fp8) {
  Json out = {{"activation_scheme", "dynamic"},
              {"fmt", "e4m3"},
              {"quant_method", "fp8"},
              {"weight_block_size", {fp8.block_rows, fp8.block_columns}}};
  if (fp8.ue8m0()) out["scale_fmt"] = fp8.scale_fmt;
  return out;
}

}  // namespace

bool is_config_field(const std::string& field) {
  const auto named = [&field](const auto& entry) { return entry.first == field; };
  const auto integer = [&field](const IntegerField& entry) { return entry.name == field; };
  return kRead.contains(field) || kIgnored.contains(field) ||
         std::any_of(kIntegers.begin(), kIntegers.end(), integer) ||
         std::any_of(fixed_fields().begin(), fixed_fields().end(), named);
}

bool is_ignored_config_field(const std::string& field) { return kIgnored.contains(field); }

std::optional<Fp8Config> fp8_from_json(const Json& object, const std::string& where,
                                       std::vector<std::string>& warnings) {
  const Fields fields(object, where);
  const Json* block = fields.find("quantization_config");
  if (!block) return std::nullopt;
  if (!block->is_object()) fields.wrong("quantization_config", "an object", *block);
  const Fields fp8(*block, where, "quantization_config.");
  const Json* method = fp8.find("quant_method");
  if (method && *method != "fp8") {
    warnings.push_back("config: quantization_config.quant_method " + kind_of(*method) +
                       " is not read, only \"fp8\"");
    return std::nullopt;
  }
  const Json *format = fp8.find("fmt"), *size = fp8.find("weight_block_size");
  if (format && *format != "e4m3") fp8.wrong("fmt", "\"e4m3\"", *format);
  Fp8Config read;
  if (size) {
    const auto whole = [](const Json& n) { return n.is_number_integer() && n > 0; };
    if (!size->is_array() || size->size() != 2 || !whole((*size)[0]) || !whole((*size)[1]))
      fp8.wrong("weight_block_size", "two sizes above 0, as [128, 128]", *size);
    read.block_rows = (*size)[0].get<int64_t>();
    read.block_columns = (*size)[1].get<int64_t>();
  }
  read.scale_fmt = fp8.find("scale_fmt") ? fp8.text("scale_fmt") : "";
  return read;
}

ModelConfig config_from_json(const Json& object, const std::string& where) {
  if (!object.is_object())
    refuse({.where = where, .what = "config", .expected = "an object", .got = kind_of(object)});
  const Fields fields(object, where);
  ModelConfig config;
  config.name = where;
  for (const IntegerField& field : kIntegers) config.*field.member = fields.integer(field.name);
  config.num_key_value_heads = fields.integer_or("num_key_value_heads", config.num_attention_heads);
  config.routed_scaling_factor = fields.number("routed_scaling_factor");
  config.norm_topk_prob = fields.boolean_or("norm_topk_prob", true);
  config.rms_norm_eps = fields.number("rms_norm_eps");
  config.use_sparse_attention = fields.boolean_or("use_sparse_attention", true);
  read_dense_layers(fields, config);
  read_rope(fields, config);
  config.fp8 = fp8_from_json(object, where, config.warnings);
  check_layer_types(fields);
  check_fixed(fields);
  config.validate();
  check_derived(fields, config);
  warn_unknown(object, config);
  return config;
}

Json config_to_json(const ModelConfig& config, const std::string& torch_dtype) {
  Json out = {{"architectures", {"DeepseekV32ForCausalLM"}},
              {"model_type", "deepseek_v32"},
              {"torch_dtype", torch_dtype},
              {"bos_token_id", 0},
              {"eos_token_id", 1},
              {"pad_token_id", nullptr},
              {"initializer_range", 0.02},
              {"use_cache", true},
              {"ep_size", 1}};
  for (const auto& [name, value] : fixed_fields()) out[name] = value;
  out["attention_dropout"] = 0.0;
  for (const IntegerField& field : kIntegers) out[field.name] = config.*field.member;
  out["num_key_value_heads"] = config.num_key_value_heads;
  out["qk_head_dim"] = config.qk_head_dim();
  // transformers 5.12 sizes its experts by this name; later releases take both.
  out["num_experts"] = config.n_routed_experts;
  out["first_k_dense_replace"] = config.first_k_dense_replace;
  out["routed_scaling_factor"] = config.routed_scaling_factor;
  out["norm_topk_prob"] = config.norm_topk_prob;
  out["rms_norm_eps"] = config.rms_norm_eps;
  out["rope_theta"] = config.rope_theta;
  out["rope_scaling"] = config.yarn ? yarn_to_json(*config.yarn) : Json(nullptr);
  if (config.fp8) out["quantization_config"] = fp8_to_json(*config.fp8);
  // Upstream does not know the field: said only where it says something.
  if (!config.use_sparse_attention) out["use_sparse_attention"] = false;
  return out;
}

Json config_to_json_5(const ModelConfig& config, const std::string& dtype) {
  Json out = config_to_json(config, dtype);
  Json rope = config.yarn ? yarn_to_json(*config.yarn) : Json{{"type", "default"}};
  rope["rope_type"] = rope["type"];
  rope.erase("type");
  rope["rope_theta"] = config.rope_theta;
  out["rope_parameters"] = rope;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer)
    out["mlp_layer_types"].push_back(config.is_dense_mlp(layer) ? "dense" : "sparse");
  out["dtype"] = dtype;
  for (const char* released :
       {"rope_theta", "rope_scaling", "first_k_dense_replace", "torch_dtype"})
    out.erase(released);
  return out;
}

std::vector<std::string> config_names() { return {"tiny", "small", "medium", "full"}; }

bool is_config_name(const std::string& name) {
  const auto names = config_names();
  return std::find(names.begin(), names.end(), name) != names.end();
}

fs::path config_path(const std::string& name_or_path) {
  if (is_config_name(name_or_path)) return home() / "configs" / name_or_path / "config.json";
  const fs::path path = name_or_path;
  std::error_code error;
  if (fs::is_directory(path, error)) return path / "config.json";
  if (fs::exists(path, error) || path.has_parent_path() || path.extension() == ".json") return path;
  const std::string near = nearest(name_or_path, config_names());
  throw Error(ExitCode::usage,
              {.where = "--config",
               .what = "config",
               .expected = "tiny, small, medium, full or the path of a config.json",
               .got = printable(name_or_path),
               .hint = near.empty() ? "" : "did you mean " + near + "?"});
}

ModelConfig parse_config(const std::string& text, const std::string& where) {
  return config_from_json(parse_json(text, where), where);
}

ModelConfig read_config(const std::string& name_or_path) {
  const fs::path path = config_path(name_or_path);
  ModelConfig config = parse_config(read_file(path, kConfigLimit), path.string());
  config.name = name_or_path;
  return config;
}

std::string config_json(const ModelConfig& config) {
  return config_to_json(config, "float32").dump(2) + "\n";
}

}  // namespace dsv32::io
