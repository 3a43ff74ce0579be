#include "src/model/dialect.h"

#include "src/model/errors.h"

namespace dsv32 {

namespace {

// What no toggle expresses: docs/dialects.md.

/// A named set of toggles. docs/dialects.md has its source.
struct Preset {
  std::string name;
  void (*plant)(Dialect&);
  std::string consequence;
};

constexpr double kTorchLayerNormEps = 1e-5;  // torch.nn.LayerNorm's default

void plant_nothing(Dialect&) {}

void plant_hf(Dialect& d) { d.rope.yarn_amplitude = true; }

void plant_off_exp(Dialect& d) {
  d.indexer.rope = RopePairing::interleaved;
  d.attention.mscale_from_mscale = true;
  d.router.norm_eps = 0;
}

void plant_off_v32(Dialect& d) {
  d.attention.mscale_from_mscale = true;
  d.router.norm_eps = 0;
  d.fp8.latent = true;
  d.fp8.indexer = true;
}

void plant_fork_test(Dialect& d) {
  plant_hf(d);
  d.rope.yarn_factor_is_ratio = true;
  d.indexer.eps_k_norm = kTorchLayerNormEps;
  d.router.group_fill_zero = true;
}

void plant_fork_main(Dialect& d) {
  d.rope.positions_of_row0 = true;
  d.indexer.eps_k_norm = kTorchLayerNormEps;
  d.attention.mscale_from_mscale = true;
  d.router.norm_eps = 1e-8;
}

void plant_mcore_jan(Dialect& d) {
  d.indexer.rope = RopePairing::interleaved;
  d.indexer.rope_first = false;
}

void plant_automodel(Dialect& d) {
  plant_mcore_jan(d);
  d.norm.eps_q_latent = 1e-5;
  d.norm.eps_kv_latent = 1e-5;
  d.indexer.eps_k_norm = kTorchLayerNormEps;
  d.attention.mscale_from_mscale = true;
  d.router.group_fill_zero = true;
}

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = {
      {"spec-1", plant_nothing, "follows the specification; nothing differs"},
      {"hf", plant_hf,
       "multiplies cos and sin by mscale(factor, mscale) / mscale(factor, mscale_all_dim): "
       "nothing changes for the released config, where both are 1; configs with other values "
       "get other rotated queries and keys"},
      {"off-exp", plant_off_exp,
       "the first public demo, with its indexer RoPE error (interleaved; corrected on "
       "2025-11-17): other keys are selected beyond index_topk tokens, long contexts get worse"},
      {"off-v32", plant_off_v32,
       "takes the softmax scale from mscale in place of mscale_all_dim: the same for the "
       "released config, another softmax temperature where the two differ; in 16 bits keeps the "
       "key-value latent and the indexer's queries and keys in FP8: a few rows select other keys"},
      {"fork-test", plant_fork_test,
       "eps 1e-5 in the indexer's k_norm (tokens of low variance get other index scores) and "
       "excluded expert groups filled with 0 (wrong experts as soon as biased scores are "
       "negative); YaRN with max/original as its factor"},
      {"fork-main", plant_fork_main,
       "rotates every row of a batch by the positions of row 0: rows with other padding are "
       "wrong wherever absolute positions matter; eps 1e-5 in k_norm, softmax scale from mscale"},
      {"mcore-jan", plant_mcore_jan,
       "rotates the last lanes of the indexer's heads, and in interleaved pairs: a released "
       "checkpoint selects wrong keys beyond index_topk tokens; a model trained this way does "
       "not fit elsewhere"},
      {"automodel", plant_automodel,
       "rotates the last lanes of the indexer's heads in interleaved pairs (wrong keys beyond "
       "index_topk tokens), eps 1e-5 in the latent norms and k_norm, excluded expert groups at "
       "0"},
  };
  return all;
}

/// One part of a set: what it changes and what follows.
struct Part {
  std::function<void(Dialect&)> plant;
  std::string consequence;
};

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Preset& preset : presets()) names.push_back(preset.name);
  return names;
}

[[noreturn]] void refuse_part(const std::string& name) {
  std::vector<std::string> names = preset_names();
  std::string known;
  for (const std::string& each : names) known += (known.empty() ? "" : ", ") + each;
  for (const auto* bugs : {&known_bugs(), &fp8_toggles()})
    for (const KnownBug& bug : *bugs) names.push_back(bug.name);
  const std::string near = nearest(name, names);
  throw Error(ExitCode::usage, {.where = "--dialect",
                                .what = "unknown dialect",
                                .expected = "one of " + known +
                                            ", a toggle (dsv32-verify list dialects), or a "
                                            "sum of them",
                                .got = "'" + name + "'",
                                .hint = near.empty() ? "" : "did you mean " + near + "?"});
}

Part find_part(const std::string& name) {
  for (const Preset& preset : presets())
    if (preset.name == name) return {preset.plant, preset.consequence};
  for (const auto* bugs : {&known_bugs(), &fp8_toggles()})
    for (const KnownBug& bug : *bugs)
      if (bug.name == name) return {bug.plant, bug.description};
  refuse_part(name);
}

/// "hf+k-norm-eps" -> hf, k-norm-eps.
std::vector<std::string> parts_of(const std::string& name) {
  std::vector<std::string> parts;
  size_t from = 0;
  for (size_t plus = name.find('+'); plus != std::string::npos; plus = name.find('+', from)) {
    parts.push_back(name.substr(from, plus - from));
    from = plus + 1;
  }
  parts.push_back(name.substr(from));
  return parts;
}

}  // namespace

const std::vector<Dialect>& dialect_presets() {
  static const std::vector<Dialect> dialects = [] {
    std::vector<Dialect> all;
    for (const Preset& preset : presets()) all.push_back(find_dialect(preset.name));
    return all;
  }();
  return dialects;
}

Dialect find_dialect(const std::string& name) {
  Dialect dialect;
  for (const std::string& part : parts_of(name)) find_part(part).plant(dialect);
  dialect.name = name;
  return dialect;
}

Dialect in_dtype(Dialect dialect, DType dtype) {
  if (!is_narrow(dtype)) dialect.fp8 = {};
  if (dtype == DType::fp8) dialect.fp8.linear = dialect.fp8.latent = dialect.fp8.indexer = true;
  return dialect;
}

std::string dialect_consequence(const std::string& name) {
  std::string text;
  for (const std::string& part : parts_of(name))
    if (part != dialect_presets().front().name || name == part)
      text += (text.empty() ? "" : "; ") + find_part(part).consequence;
  return text;
}

}  // namespace dsv32
