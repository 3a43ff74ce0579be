#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "harness/judge/limits.h"
#include "harness/judge/structure/parts.h"
#include "harness/judge/structure/structure.h"

namespace dsv32::harness {
namespace {

struct Constant {
  std::string name;
  double value;
};
using Constants = std::vector<Constant>;

double yarn_mscale(const YarnConfig& yarn, double mscale) {
  return yarn.factor <= 1 || mscale == 0 ? 1 : 0.1 * mscale * std::log(yarn.factor) + 1;
}

/// x, its root, and the inverses of both.
void add_size(Constants& out, const std::string& name, int64_t size) {
  const auto x = static_cast<double>(size);
  out.push_back({name, x});
  out.push_back({"1 / " + name, 1 / x});
  out.push_back({"sqrt(" + name + ")", std::sqrt(x)});
  out.push_back({"1 / sqrt(" + name + ")", 1 / std::sqrt(x)});
}

void add_factor(Constants& out, const std::string& name, double factor) {
  out.push_back({name, factor});
  out.push_back({"1 / " + name, 1 / factor});
  out.push_back({name + "^2", factor * factor});
  out.push_back({"1 / " + name + "^2", 1 / (factor * factor)});
}

Constants of_attention(const ModelConfig& c) {
  Constants out;
  const auto root = [](int64_t a, int64_t b) {
    return std::sqrt(static_cast<double>(a) / static_cast<double>(b));
  };
  if (c.yarn) {
    add_factor(out, "mscale", yarn_mscale(*c.yarn, c.yarn->mscale_all_dim));
    if (c.yarn->mscale != c.yarn->mscale_all_dim) {
      const double other = yarn_mscale(*c.yarn, c.yarn->mscale);
      add_factor(out, "mscale of the field mscale", other);
      add_factor(out, "the ratio of both mscale",
                 other / yarn_mscale(*c.yarn, c.yarn->mscale_all_dim));
    }
  }
  out.push_back(
      {"sqrt(qk_head_dim / qk_nope_head_dim)", root(c.qk_head_dim(), c.qk_nope_head_dim)});
  out.push_back(
      {"sqrt(qk_head_dim / qk_rope_head_dim)", root(c.qk_head_dim(), c.qk_rope_head_dim)});
  out.push_back({"sqrt(qk_head_dim / v_head_dim)", root(c.qk_head_dim(), c.v_head_dim)});
  add_size(out, "qk_head_dim", c.qk_head_dim());
  add_size(out, "num_attention_heads", c.num_attention_heads);
  return out;
}

Constants of_indexer(const ModelConfig& c) {
  Constants out;
  add_size(out, "index_n_heads", c.index_n_heads);
  add_size(out, "index_head_dim", c.index_head_dim);
  add_size(out, "index_n_heads * index_head_dim", c.index_n_heads * c.index_head_dim);
  return out;
}

Constants of_experts(const ModelConfig& c) {
  Constants out;
  add_factor(out, "routed_scaling_factor", c.routed_scaling_factor);
  add_size(out, "num_experts_per_tok", c.num_experts_per_tok);
  return out;
}

Constants of_stream(const ModelConfig& c) {
  Constants out;
  add_size(out, "hidden_size", c.hidden_size);
  return out;
}

bool has(const std::string& name, const char* part) { return name.find(part) != std::string::npos; }

Constants constants_of(const TapName& tap, const ModelConfig& config) {
  const std::string& name = tap.full;
  // Small numbers: of a gradient they count ranks and micro-batches, which the config does not
  // know.
  if (tap.info.kind == TapKind::gradient && !has(name, "indexer")) return {};
  if (has(name, "ix.") || has(name, "indexer") || has(name, "kl.")) return of_indexer(config);
  if (has(name, "attn.logits") || has(name, "q_") || has(name, "k_rope"))
    return of_attention(config);
  if (has(name, "moe") || has(name, "mlp") || has(name, "router")) return of_experts(config);
  return of_stream(config);
}

// --- blocks -------------------------------------------------------------------------------------

/// Which block a row belongs to; "" for none.
using LabelOf = std::function<std::string(const Row&)>;

std::string inside_head(int64_t row, int64_t size, int64_t first, const char* a, const char* b) {
  return row % size < first ? a : b;
}

std::vector<LabelOf> partitions(const Comparison& c) {
  std::vector<LabelOf> out;
  const ModelConfig& config = *c.config;
  const std::string& name = c.tap.full;
  if (c.tap.info.kind == TapKind::gradient) {
    if (has(name, "kv_a_proj_with_mqa"))
      out.push_back([&](const Row& row) {
        return std::string(row.number < config.kv_lora_rank ? "latent rows" : "rope rows");
      });
    if (has(name, "q_b_proj"))
      out.push_back([&](const Row& row) {
        return inside_head(row.number, config.qk_head_dim(), config.qk_nope_head_dim, "nope rows",
                           "rope rows");
      });
    if (has(name, "kv_b_proj"))
      out.push_back([&](const Row& row) {
        return inside_head(row.number, config.qk_nope_head_dim + config.v_head_dim,
                           config.qk_nope_head_dim, "key rows", "value rows");
      });
    const int64_t head = has(name, "q_b_proj")    ? config.qk_head_dim()
                         : has(name, "kv_b_proj") ? config.qk_nope_head_dim + config.v_head_dim
                         : has(name, "wq_b")      ? config.index_head_dim
                                                  : 0;
    if (head > 0)
      out.push_back([head](const Row& row) { return "head " + std::to_string(row.number / head); });
    return out;
  }
  out.push_back([](const Row& row) { return row.h < 0 ? "" : "head " + std::to_string(row.h); });
  out.push_back(
      [](const Row& row) { return row.b < 0 ? "" : "batch row " + std::to_string(row.b); });
  return out;
}

struct Block {
  double oo = 0, ko = 0, kk = 0, dd = 0;
  double gain() const { return oo > 0 ? ko / oo : 1; }
  double left() const { return std::max(kk - gain() * ko, 0.0); }
};

std::map<std::string, Block> blocks_of(const Sample& sample, const LabelOf& label_of) {
  std::map<std::string, Block> blocks;
  for (size_t r = 0; r < sample.rows.size(); ++r) {
    Block& block = blocks[label_of(*sample.rows[r])];
    for (size_t i = 0; i < sample.o[r].size(); ++i) {
      const double o = sample.o[r][i], k = sample.k[r][i];
      block.oo += o * o;
      block.ko += k * o;
      block.kk += k * k;
      block.dd += (k - o) * (k - o);
    }
  }
  return blocks;
}

std::string describe_partition(const Sample& sample, const LabelOf& label_of) {
  const std::map<std::string, Block> blocks = blocks_of(sample, label_of);
  if (blocks.size() < 2 || blocks.contains("")) return "";
  double left = 0, smallest = INFINITY, largest = -INFINITY;
  for (const auto& [label, block] : blocks) {
    left += block.left();
    smallest = std::min(smallest, block.gain());
    largest = std::max(largest, block.gain());
  }
  constexpr double kLeft = 1e-3, kApart = 1e-4;
  if (!(left <= kLeft * sample.error) || !(largest - smallest > kApart)) return "";
  constexpr size_t kShown = 4;
  std::string text;
  size_t shown = 0, right = 0;
  for (const auto& [label, block] : blocks) {
    if (std::fabs(block.gain() - 1) < kApart) {
      ++right;
    } else if (shown++ < kShown) {
      text += (text.empty() ? "" : ", ") + label + " gain " + text_of(block.gain());
    }
  }
  if (shown > kShown) text += ", ...";
  return right == 0 ? text : text + ", the others are right";
}

}  // namespace

std::string name_constant(const TapName& tap, const ModelConfig& config, double gain,
                          double error) {
  constexpr double kCertain = 5, kRelative = 1e-6, kSharp = 1e-5;
  if (!(error <= kSharp * std::fabs(gain))) return "";
  Constants found;
  for (const Constant& constant : constants_of(tap, config)) {
    const bool trivial = std::fabs(constant.value - 1) < kRelative;
    if (!trivial &&
        std::fabs(gain - constant.value) <= std::max(kCertain * error, kRelative * gain))
      found.push_back(constant);
  }
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(found.size(), 2); ++i)
    text += (i == 0 ? " = " : " or ") + found[i].name;
  return text;
}

std::string describe_blocks(const Comparison& c, const Sample& sample) {
  if (c.config == nullptr) return "";
  for (const LabelOf& label_of : partitions(c)) {
    const std::string text = describe_partition(sample, label_of);
    if (!text.empty()) return text;
  }
  return "";
}

}  // namespace dsv32::harness
