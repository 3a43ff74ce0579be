#include "src/io/checkpoint/names.h"

#include <algorithm>
#include <array>
#include <utility>

namespace dsv32::io {
namespace {

/// A pair of words for one thing: Hugging Face's and the demo's.
using Words = std::pair<std::string_view, std::string_view>;

constexpr std::array kModules = {Words{"embed_tokens", "embed"},
                                 Words{"lm_head", "head"},
                                 Words{"input_layernorm", "attn_norm"},
                                 Words{"post_attention_layernorm", "ffn_norm"},
                                 Words{"q_a_proj", "wq_a"},
                                 Words{"q_a_layernorm", "q_norm"},
                                 Words{"q_b_proj", "wq_b"},
                                 Words{"kv_a_proj_with_mqa", "wkv_a"},
                                 Words{"kv_a_layernorm", "kv_norm"},
                                 Words{"kv_b_proj", "wkv_b"},
                                 Words{"o_proj", "wo"},
                                 Words{"gate_proj", "w1"},
                                 Words{"down_proj", "w2"},
                                 Words{"up_proj", "w3"}};
constexpr std::array kParts = {Words{"self_attn", "attn"}, Words{"mlp", "ffn"}};
constexpr std::array kLeaves = {Words{"weight_scale_inv", "scale"},
                                Words{"e_score_correction_bias", "bias"}};

template <size_t N>
std::string_view other_word(const std::array<Words, N>& table, std::string_view word,
                            bool to_demo) {
  const auto it = std::find_if(table.begin(), table.end(), [&](const Words& words) {
    return (to_demo ? words.first : words.second) == word;
  });
  if (it == table.end()) return word;
  return to_demo ? it->second : it->first;
}

std::string replaced(const std::string& name, size_t begin, size_t end, std::string_view word) {
  return name.substr(0, begin) + std::string(word) + name.substr(end);
}

/// "layers.3.attn.wo.weight" with the words of the other style.
std::string translated(std::string name, bool to_demo) {
  const size_t leaf = name.rfind('.') + 1;
  const bool indexer = name.find(".indexer.") != std::string::npos;
  // The indexer's k_norm has a bias of its own.
  if (!indexer || std::string_view(name).substr(leaf) != "bias")
    name = replaced(name, leaf, name.size(), other_word(kLeaves, name.substr(leaf), to_demo));
  const size_t end = name.rfind('.'), before = name.rfind('.', end - 1);
  const size_t module = before == std::string::npos ? 0 : before + 1;
  if (!indexer)
    name = replaced(name, module, end,
                    other_word(kModules, name.substr(module, end - module), to_demo));
  if (!name.starts_with("layers.")) return name;
  const size_t part = name.find('.', name.find('.') + 1) + 1, dot = name.find('.', part);
  if (part == 0 || dot == std::string::npos) return name;
  return replaced(name, part, dot, other_word(kParts, name.substr(part, dot - part), to_demo));
}

}  // namespace

std::optional<std::string> released_name(const std::string& demo) {
  if (demo == "embed.weight" || demo == "norm.weight") return "model." + translated(demo, false);
  if (demo == "head.weight") return translated(demo, false);
  if (!demo.starts_with("layers.") || std::count(demo.begin(), demo.end(), '.') < 3)
    return std::nullopt;
  return "model." + translated(demo, false);
}

std::string demo_name(const std::string& released) {
  constexpr std::string_view kModel = "model.";
  return translated(released.starts_with(kModel) ? released.substr(kModel.size()) : released, true);
}

RankSplit rank_split(const std::string& released) {
  if (released.find(".mlp.experts.") != std::string::npos) return RankSplit::expert;
  const auto ends = [&](std::string_view ending) { return released.ends_with(ending); };
  if (ends(".o_proj.weight") || ends(".down_proj.weight")) return RankSplit::columns;
  if (ends(".q_b_proj.weight") || ends(".kv_b_proj.weight") || ends(".gate_proj.weight") ||
      ends(".up_proj.weight") || ends("embed_tokens.weight") || released == "lm_head.weight")
    return RankSplit::rows;
  return RankSplit::none;
}

std::optional<ExpertName> parse_expert(const std::string& name) {
  constexpr std::string_view kExperts = ".mlp.experts.", kWeight = ".weight";
  const size_t at = name.find(kExperts);
  if (at == std::string::npos || !name.ends_with(kWeight)) return std::nullopt;
  const size_t number = at + kExperts.size(), dot = name.find('.', number);
  return ExpertName{name.substr(0, number), std::stoll(name.substr(number, dot - number)),
                    name.substr(dot + 1, name.size() - kWeight.size() - dot - 1)};
}

}  // namespace dsv32::io
