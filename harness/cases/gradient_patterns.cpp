#include "harness/cases/gradient_patterns.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>

#include "src/model/check_name.h"
#include "src/model/trace.h"

namespace dsv32::harness {
namespace {

using Names = std::vector<std::string>;

bool has(const std::string& name, const char* part) { return name.find(part) != std::string::npos; }

/// Weights that a fault in one kind of code reaches together.
std::string kind_of(const std::string& tap) {
  constexpr std::array<std::array<const char*, 2>, 10> kKinds = {{
      {".mlp.experts.", "the routed experts"},
      {".shared_experts.", "the shared experts"},
      {".mlp.gate.", "the router"},
      {".indexer.", "the indexer"},
      {"kv_a_proj", "kv_a_proj_with_mqa"},
      {"self_attn.", "the attention"},
      {".mlp.", "the dense MLP"},
      {"norm.weight", "the norms of the stream"},
      {"embed_tokens", "the embedding"},
      {"lm_head", "the head"},
  }};
  const std::string factor = has(tap, ".lora_A.")   ? "the A factors of "
                             : has(tap, ".lora_B.") ? "the B factors of "
                                                    : "";
  for (const auto& [part, name] : kKinds)
    if (has(tap, part)) return factor + name;
  return factor + "other weights";
}

/// Place on the way from the input to the loss.
std::pair<int64_t, int64_t> place_of(const std::string& tap) {
  constexpr int64_t kAfterAll = 1 << 30;
  if (has(tap, "embed_tokens")) return {-1, 0};
  const std::optional<int64_t> layer = parse_tap(tap)->layer;
  if (!layer) return {kAfterAll, has(tap, "lm_head") ? 1 : 0};
  constexpr std::array<const char*, 11> kOrder = {
      "input_layernorm",          "q_a_proj",  "kv_a_proj", "q_a_layernorm",
      "kv_a_layernorm",           "q_b_proj",  "kv_b_proj", "o_proj",
      "post_attention_layernorm", "mlp.gate.", "mlp."};
  const auto found =
      std::find_if(kOrder.begin(), kOrder.end(), [&](const char* part) { return has(tap, part); });
  return {*layer, found - kOrder.begin()};
}

constexpr char kZero[] = "exactly zero";

/// "x 2", "exactly zero"; "" when the error is no pattern of its own.
std::string look_of(const Verdict& verdict) {
  if (!verdict.gain) return "";
  if (*verdict.gain == 0) return kZero;
  char text[32];
  std::snprintf(text, sizeof text, "x %.4g", *verdict.gain);
  return text;
}

std::string join(const Names& parts) {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i)
    text += (i == 0 ? "" : i + 1 == parts.size() ? " and " : ", ") + parts[i];
  return text;
}

struct Group {
  Names taps;
  std::map<std::string, int64_t> kinds;
};

/// Kinds of weights with how many of theirs are in the group, and of how many.
std::string members(const Group& group, const std::map<std::string, int64_t>& all) {
  Names parts;
  for (const auto& [kind, count] : group.kinds) {
    const int64_t of = all.at(kind);
    const std::string share = count == of ? "all " + std::to_string(of)
                                          : std::to_string(count) + " of " + std::to_string(of);
    parts.push_back(kind + " (" + share + ")");
  }
  return join(parts);
}

/// What the structures of all these taps say alike of the summands of ranks.
std::string common_summand(const Names& taps, const std::vector<Verdict>& verdicts) {
  std::string common;
  for (const Verdict& verdict : verdicts) {
    if (verdict.trust != Trust::fail ||
        std::find(taps.begin(), taps.end(), verdict.tap) == taps.end())
      continue;
    std::string own;
    for (size_t from = 0; from < verdict.structure.size() && own.empty();) {
      const size_t to = std::min(verdict.structure.find("; ", from), verdict.structure.size());
      const std::string part = verdict.structure.substr(from, to - from);
      if (part.find("summand") != std::string::npos) own = part;
      from = to + 2;
    }
    if (own.empty() || (!common.empty() && own != common)) return "";
    common = own;
  }
  return common;
}

std::map<std::string, int64_t> count_kinds(const Names& failing, const Names& passing) {
  std::map<std::string, int64_t> all;
  for (const Names* part : {&failing, &passing})
    for (const std::string& tap : *part) ++all[kind_of(tap)];
  return all;
}

}  // namespace

std::string members_of(const Names& failing, const Names& passing) {
  Group group;
  for (const std::string& tap : failing) ++group.kinds[kind_of(tap)];
  return members(group, count_kinds(failing, passing));
}

std::vector<GradientPattern> gradient_patterns(const Names& failing, const Names& passing,
                                               const std::vector<Verdict>& verdicts) {
  const std::map<std::string, int64_t> all = count_kinds(failing, passing);
  std::map<std::string, Group> groups;
  for (const std::string& tap : failing) {
    const auto verdict = std::find_if(verdicts.begin(), verdicts.end(), [&](const Verdict& v) {
      return v.tap == tap && v.trust == Trust::fail;
    });
    Group& group = groups[verdict == verdicts.end() ? "" : look_of(*verdict)];
    group.taps.push_back(tap);
    ++group.kinds[kind_of(tap)];
  }
  std::vector<GradientPattern> patterns;
  for (auto& [look, group] : groups) {
    std::stable_sort(group.taps.begin(), group.taps.end(),
                     [](const auto& a, const auto& b) { return place_of(a) > place_of(b); });
    const std::string which = members(group, all);
    std::string words = look == kZero   ? "gradients are exactly zero: " + which
                        : !look.empty() ? "gradients " + look + ": " + which
                                        : "gradients are off from " + group.taps.front() +
                                              " back to the input: " + which;
    if (const std::string rank = common_summand(group.taps, verdicts); !rank.empty())
      words += "; " + rank;
    patterns.push_back({std::move(words), group.taps});
  }
  return patterns;
}

std::vector<GradientPattern> gradient_patterns(const std::vector<Verdict>& verdicts) {
  Names failing, passing;
  for (const Verdict& verdict : verdicts)
    if (is_gradient_check(verdict.tap))
      (verdict.trust == Trust::fail ? failing : passing).push_back(verdict.tap);
  return gradient_patterns(failing, passing, verdicts);
}

}  // namespace dsv32::harness
