#include "golden/reader/training_layout.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "golden/reader/layout.h"
#include "src/io/io.h"
#include "src/io/json.h"
#include "src/io/text.h"
#include "src/model/sketch.h"
#include "src/model/weights.h"

namespace dsv32::golden {
namespace {

constexpr size_t kMaxNames = 4096;
constexpr size_t kMaxNameBytes = 256;
constexpr int64_t kMaxSteps = 1000;
constexpr int64_t kMaxTensorBytes = int64_t{4} << 20;
constexpr size_t kMaxRank = 4;

[[noreturn]] void refuse(const std::string& where, const std::string& what,
                         const std::string& expected, const std::string& got) {
  io::refuse({.where = where,
              .what = what,
              .expected = expected,
              .got = io::printable(got),
              .hint = "golden/make makes the training goldens anew"});
}

void require(const TrainingGolden& golden, const std::string& name, const std::string& expected,
             const std::string& where) {
  const auto it = golden.attributes.find(name);
  if (it == golden.attributes.end()) refuse(where, "attribute " + name, "this attribute", "none");
  if (it->second != expected) refuse(where, "attribute " + name, expected, it->second);
}

/// An attribute that is JSON in canonical form.
io::Json json_attribute(const TrainingGolden& golden, const std::string& name,
                        const std::string& where) {
  const auto it = golden.attributes.find(name);
  if (it == golden.attributes.end()) refuse(where, "attribute " + name, "this attribute", "none");
  return io::parse_json(it->second, where + ": attribute " + name);
}

/// A name that is safe as the last part of an HDF5 path.
bool is_link_name(const std::string& name) {
  const auto harmless = [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
  };
  return !name.empty() && name[0] != '.' && name.size() <= kMaxNameBytes &&
         std::all_of(name.begin(), name.end(), harmless);
}

std::vector<std::string> name_list(const TrainingGolden& golden, const std::string& attribute,
                                   const std::string& where) {
  const io::Json json = json_attribute(golden, attribute, where);
  const std::string what = "attribute " + attribute;
  if (!json.is_array() || json.empty() || json.size() > kMaxNames)
    refuse(where, what, "1 to " + std::to_string(kMaxNames) + " names", io::kind_of(json));
  std::vector<std::string> names;
  std::set<std::string> known;
  for (const io::Json& name : json) {
    if (!name.is_string() || !is_link_name(name.get<std::string>()))
      refuse(where, what, "names", name.dump());
    names.push_back(name.get<std::string>());
    if (!known.insert(names.back()).second)
      refuse(where, what, "each name once", names.back() + " twice");
  }
  return names;
}

struct RecipeFacts {
  int64_t steps = 0;
  bool lm = true;
  std::string kl;
  bool sharded = false;
  std::vector<std::string> groups;
};

const io::Json& field(const io::Json& recipe, const std::string& key, const std::string& where) {
  const auto it = recipe.find(key);
  if (it == recipe.end()) refuse(where, "recipe", "the field " + key, "none");
  return *it;
}

RecipeFacts check_recipe(const TrainingGolden& golden, const std::string& where) {
  const io::Json recipe = json_attribute(golden, "recipe", where);
  if (!recipe.is_object()) refuse(where, "recipe", "an object", io::kind_of(recipe));
  if (io::canonical_json(recipe) != golden.attributes.at("recipe"))
    refuse(where, "recipe", "RFC 8785 JSON", golden.attributes.at("recipe"));
  const std::set<std::string> known = {"accumulation", "batches", "clip",  "groups", "kl",
                                       "kl_weight",    "lm",      "steps", "world"};
  for (const std::string& key : known) field(recipe, key, where);
  for (const auto& [key, value] : recipe.items()) {
    if (known.count(key) == 0) refuse(where, "recipe", "known fields", key);
  }
  const io::Json& steps = recipe["steps"];
  if (!steps.is_number_unsigned() || steps.get<uint64_t>() < 1 ||
      steps.get<uint64_t>() > static_cast<uint64_t>(kMaxSteps)) {
    refuse(where, "recipe.steps", "1 to " + std::to_string(kMaxSteps), steps.dump());
  }
  const io::Json &kl = recipe["kl"], &lm = recipe["lm"], &groups = recipe["groups"];
  if (kl != "none" && kl != "warmup" && kl != "sparse")
    refuse(where, "recipe.kl", "none, warmup or sparse", kl.dump());
  if (!lm.is_boolean()) refuse(where, "recipe.lm", "true or false", lm.dump());
  if (!groups.is_array() || groups.empty()) refuse(where, "recipe.groups", "groups", groups.dump());
  RecipeFacts facts{.steps = steps.get<int64_t>(),
                    .lm = lm.get<bool>(),
                    .kl = kl,
                    .sharded = recipe["world"] != 1};
  for (const io::Json& group : groups) {
    if (!group.is_object() || !group.contains("name") || !group["name"].is_string())
      refuse(where, "recipe.groups", "groups with a name", group.dump());
    facts.groups.push_back(group["name"].get<std::string>());
  }
  return facts;
}

void check_identity(const TrainingGolden& golden, const ManifestEntry& entry, const Case& c,
                    const std::string& where) {
  for (const char* name : {"dialect", "producer", "weights_loaded", "attn_implementation"}) {
    const auto it = golden.attributes.find(name);
    if (it == golden.attributes.end() || it->second.empty())
      refuse(where, std::string("attribute ") + name, "a value", "none");
  }
  require(golden, "format", kTrainingFormat, where);
  require(golden, "version", std::to_string(kTrainingVersion), where);
  require(golden, "kind", "train", where);
  require(golden, "case_name", c.name, where);
  require(golden, "suite", entry.case_name.substr(0, entry.case_name.size() - c.name.size() - 1),
          where);
  require(golden, "case", io::case_json(c), where);
  require(golden, "mode", "train", where);
  require(golden, "dtype", "float32", where);
  require(golden, "forced", "false", where);
  require(golden, "mask", c.mask_given ? "given" : "none", where);
  require(golden, "seed", std::to_string(c.seed), where);
  require(golden, "weights", SyntheticWeights(c).identity(), where);
}

void check_config(const TrainingGolden& golden, const Case& c, const std::string& where) {
  const auto it = golden.attributes.find("config");
  if (it == golden.attributes.end()) refuse(where, "attribute config", "this attribute", "none");
  const std::string& text = it->second;
  require(golden, "config_sha256", io::sha256_hex(text.data(), text.size()), where);
  const ModelConfig config = io::parse_config(text, where + ": attribute config");
  if (io::config_json(config) != io::config_json(c.config)) {
    refuse(where, "attribute config", "the config of case " + c.name + " in configs/cases.json",
           "another one");
  }
}

/// Series that a recipe may have (of a sharded run also those of the same run on one rank); the
/// losses of its objective must be there.
void check_series(const TrainingListing& listing, const RecipeFacts& recipe,
                  const std::string& where) {
  std::set<std::string> allowed, needed;
  if (recipe.lm) needed.insert("loss");
  if (recipe.kl != "none") needed.insert("kl");
  allowed = needed;
  for (const std::string& group : recipe.groups)
    allowed.insert(recipe.groups.size() == 1 ? "grad_norm" : "grad_norm." + group);
  if (recipe.sharded) {
    for (const std::string& name : std::set<std::string>(allowed))
      allowed.insert("unsharded." + name);
  }
  for (const std::string& name : listing.series) {
    if (allowed.count(name) == 0) refuse(where, "attribute series", "series of the recipe", name);
    needed.erase(name);
  }
  if (!needed.empty())
    refuse(where, "attribute series", "series " + *needed.begin(), "none of that name");
}

/// Dense attention (the warm-up, a dense case) selects every key: nothing to keep.
std::vector<std::string> expected_decisions(const Case& c, const RecipeFacts& recipe) {
  std::vector<std::string> names;
  const bool dense = !c.config.use_sparse_attention || recipe.kl == "warmup";
  for (const std::string& name : forward_taps(c.config)) {
    const TapKind kind = parse_tap(name)->info.kind;
    if (kind == TapKind::experts || (kind == TapKind::topk && !dense)) names.push_back(name);
  }
  return names;
}

void check_parameters(const TrainingListing& listing, const Case& c, const std::string& where) {
  for (const std::string& name : listing.parameters) {
    const bool adapter = name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
    const bool weight = weight_shape(c.config, name).has_value() && !is_buffer(name);
    if (!adapter && !weight)
      refuse(where, "attribute parameters", "parameters of case " + c.name, name);
  }
}

ListedTensor parse_tensor(const io::Json& json, const std::string& where) {
  const std::string what = "attribute tensors", expected = "entries {dtype, name, shape}";
  if (!json.is_object() || json.size() != 3 || !json.contains("name") || !json.contains("dtype") ||
      !json.contains("shape") || !json["name"].is_string() || !json["shape"].is_array() ||
      json["shape"].size() > kMaxRank) {
    refuse(where, what, expected, json.dump());
  }
  ListedTensor tensor{.name = json["name"].get<std::string>()};
  if (!is_link_name(tensor.name)) refuse(where, what, "names", tensor.name);
  if (json["dtype"] != "float32" && json["dtype"] != "int32")
    refuse(where, what, "float32 or int32", json["dtype"].dump());
  tensor.dtype = json["dtype"] == "float32" ? DType::float32 : DType::int32;
  int64_t bytes = item_size(tensor.dtype);
  for (const io::Json& n : json["shape"]) {
    if (!n.is_number_unsigned() || n.get<uint64_t>() < 1 ||
        n.get<uint64_t>() > static_cast<uint64_t>(kMaxTensorBytes / bytes)) {
      refuse(where, what, "at most 4 MiB each", tensor.name + " " + json["shape"].dump());
    }
    tensor.shape.push_back(n.get<int64_t>());
    bytes *= tensor.shape.back();
  }
  return tensor;
}

std::vector<ListedTensor> tensor_list(const TrainingGolden& golden, const std::string& where) {
  const io::Json json = json_attribute(golden, "tensors", where);
  if (!json.is_array() || json.size() > kMaxNames)
    refuse(where, "attribute tensors", "a list of tensors", io::kind_of(json));
  std::vector<ListedTensor> tensors;
  std::set<std::string> known;
  for (const io::Json& entry : json) {
    tensors.push_back(parse_tensor(entry, where));
    if (!known.insert(tensors.back().name).second)
      refuse(where, "attribute tensors", "each tensor once", tensors.back().name + " twice");
  }
  return tensors;
}

}  // namespace

TrainingListing check_training(const TrainingGolden& golden, const ManifestEntry& entry,
                               const Case& c, const std::string& where) {
  check_identity(golden, entry, c, where);
  check_config(golden, c, where);
  const RecipeFacts recipe = check_recipe(golden, where);
  TrainingListing listing{.steps = recipe.steps,
                          .series = name_list(golden, "series", where),
                          .decisions = name_list(golden, "decisions", where),
                          .parameters = name_list(golden, "parameters", where),
                          .tensors = tensor_list(golden, where)};
  check_series(listing, recipe, where);
  const std::vector<std::string> decisions = expected_decisions(c, recipe);
  if (listing.decisions != decisions) {
    refuse(where, "attribute decisions", io::listed(decisions), io::listed(listing.decisions));
  }
  check_parameters(listing, c, where);
  const int64_t values = listing.steps * static_cast<int64_t>(listing.parameters.size()) *
                         kParameterProjections * item_size(DType::float32);
  if (values > kMaxTensorBytes)
    refuse(where, "parameters", "projections of at most 4 MiB", std::to_string(values) + " bytes");
  return listing;
}

}  // namespace dsv32::golden
