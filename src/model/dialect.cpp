#include "src/model/dialect.h"

#include <algorithm>

#include "src/model/errors.h"

namespace dsv32 {

namespace {

// Sources, and what no toggle expresses: docs/dialects.md.

struct Preset {
  Dialect dialect;
  std::string consequence;
};

constexpr double kTorchLayerNormEps = 1e-5;  // torch.nn.LayerNorm's default

Preset spec_1() { return {{}, "follows the specification; nothing differs"}; }

Preset hf() {
  Dialect d;
  d.name = "hf";
  d.rope.yarn_amplitude = true;
  return {
      d,
      "multiplies cos and sin by mscale(factor, mscale) / mscale(factor, mscale_all_dim): nothing "
      "changes for the released config, where both are 1; configs with other values get other "
      "rotated queries and keys"};
}

Preset off_exp() {
  Dialect d;
  d.name = "off-exp";
  d.indexer.rope = RopePairing::interleaved;
  d.attention.mscale_from_mscale = true;
  d.router.norm_eps = 0;
  return {
      d,
      "the first public demo, with its indexer RoPE error (interleaved; corrected on 2025-11-17): "
      "other keys are selected beyond index_topk tokens, long contexts get worse"};
}

Preset off_v32() {
  Dialect d;
  d.name = "off-v32";
  d.attention.mscale_from_mscale = true;
  d.router.norm_eps = 0;
  return {
      d,
      "takes the softmax scale from mscale in place of mscale_all_dim: the same for the released "
      "config, another softmax temperature where the two differ"};
}

Preset fork_test() {
  Dialect d = hf().dialect;
  d.name = "fork-test";
  d.rope.yarn_factor_is_ratio = true;
  d.indexer.eps_k_norm = kTorchLayerNormEps;
  d.router.group_fill_zero = true;
  return {
      d,
      "eps 1e-5 in the indexer's k_norm (tokens of low variance get other index scores) and "
      "excluded expert groups filled with 0 (wrong experts as soon as biased scores are negative); "
      "YaRN with max/original as its factor"};
}

Preset fork_main() {
  Dialect d;
  d.name = "fork-main";
  d.rope.positions_of_row0 = true;
  d.indexer.eps_k_norm = kTorchLayerNormEps;
  d.attention.mscale_from_mscale = true;
  d.router.norm_eps = 1e-8;
  return {
      d,
      "rotates every row of a batch by the positions of row 0: rows with other padding are wrong "
      "wherever absolute positions matter; eps 1e-5 in k_norm, softmax scale from mscale"};
}

Preset mcore_jan() {
  Dialect d;
  d.name = "mcore-jan";
  d.indexer.rope = RopePairing::interleaved;
  d.indexer.rope_first = false;
  return {d,
          "rotates the last lanes of the indexer's heads, and in interleaved pairs: a released "
          "checkpoint "
          "selects wrong keys beyond index_topk tokens; a model trained this way does not fit "
          "elsewhere"};
}

Preset automodel() {
  Dialect d = mcore_jan().dialect;
  d.name = "automodel";
  d.norm.eps_q_latent = 1e-5;
  d.norm.eps_kv_latent = 1e-5;
  d.indexer.eps_k_norm = kTorchLayerNormEps;
  d.attention.mscale_from_mscale = true;
  d.router.group_fill_zero = true;
  return {
      d,
      "rotates the last lanes of the indexer's heads in interleaved pairs (wrong keys beyond "
      "index_topk tokens), eps 1e-5 in the latent norms and k_norm, excluded expert groups at 0"};
}

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = {spec_1(),    hf(),        off_exp(),   off_v32(),
                                          fork_test(), fork_main(), mcore_jan(), automodel()};
  return all;
}

const Preset& find_preset(const std::string& name) {
  std::vector<std::string> names;
  for (const Preset& preset : presets()) {
    if (preset.dialect.name == name) return preset;
    names.push_back(preset.dialect.name);
  }
  std::string known;
  for (const std::string& each : names) known += (known.empty() ? "" : ", ") + each;
  const std::string near = nearest(name, names);
  throw Error(ExitCode::usage, {.where = "--dialect",
                                .what = "unknown dialect",
                                .expected = "one of " + known,
                                .got = "'" + name + "'",
                                .hint = near.empty() ? "" : "did you mean '" + near + "'?"});
}

}  // namespace

const std::vector<Dialect>& dialect_presets() {
  static const std::vector<Dialect> dialects = [] {
    std::vector<Dialect> all;
    for (const Preset& preset : presets()) all.push_back(preset.dialect);
    return all;
  }();
  return dialects;
}

const Dialect& find_dialect(const std::string& name) {
  const auto& all = dialect_presets();
  find_preset(name);  // throws for an unknown name
  return *std::find_if(all.begin(), all.end(), [&](const Dialect& d) { return d.name == name; });
}

std::string dialect_consequence(const std::string& name) { return find_preset(name).consequence; }

}  // namespace dsv32
