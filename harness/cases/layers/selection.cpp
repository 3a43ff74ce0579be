#include "harness/cases/layers/selection.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

constexpr char kEmbed[] = "embed", kHead[] = "head";

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> words(1);
  for (const char c : text) {
    if (c == ',') {
      words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  return words;
}

[[noreturn]] void refuse(const std::string& what, const ModelConfig& config,
                         const std::string& got) {
  throw Error(ExitCode::usage,
              {.where = "--layers",
               .what = what,
               .expected = "layers 0 to " + std::to_string(config.num_hidden_layers - 1) +
                           ", embed or head, each once, as in 0,3",
               .got = got});
}

int64_t layer_number(const std::string& word, const ModelConfig& config) {
  int64_t layer = -1;
  const char* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, layer);
  const bool number = error == std::errc() && stop == end;
  if (!number) refuse(word.empty() ? "empty word" : "word", config, "\"" + word + "\"");
  if (layer < 0 || layer >= config.num_hidden_layers)
    refuse("layer out of range", config, std::to_string(layer));
  return layer;
}

/// "0", "0 and 3", "0 to 60", "0, 3 and 60".
std::string listed(const std::vector<int64_t>& layers) {
  const bool run = layers.size() > 2 &&
                   layers.back() - layers.front() + 1 == static_cast<int64_t>(layers.size());
  if (run) return std::to_string(layers.front()) + " to " + std::to_string(layers.back());
  std::string text;
  for (size_t i = 0; i < layers.size(); ++i)
    text += (i == 0 ? "" : i + 1 == layers.size() ? " and " : ", ") + std::to_string(layers[i]);
  return text;
}

}  // namespace

LayerSelection parse_layers(const std::string& words, const ModelConfig& config) {
  LayerSelection selection;
  std::set<std::string> seen;
  for (const std::string& word : split(words)) {
    const bool special = word == kEmbed || word == kHead;
    const std::string name = special ? word : std::to_string(layer_number(word, config));
    if (!seen.insert(name).second) refuse("repeated word", config, name);
    selection.embed |= word == kEmbed;
    selection.head |= word == kHead;
    if (!special) selection.layers.push_back(layer_number(word, config));
  }
  std::sort(selection.layers.begin(), selection.layers.end());
  return selection;
}

LayerSelection every_layer(const ModelConfig& config) {
  LayerSelection selection{.layers = {}, .embed = true, .head = true};
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer)
    selection.layers.push_back(layer);
  return selection;
}

std::vector<SegmentChain> chains_of(const LayerSelection& selection, const ModelConfig& config) {
  std::vector<SegmentChain> chains;
  int64_t next = -1;  // the layer that would go on with the last chain
  if (selection.embed) {
    chains.push_back({.segments = {{.kind = SegmentKind::embed}}, .begins_at = {}});
    next = 0;
  }
  for (const int64_t layer : selection.layers) {
    if (layer != next) chains.push_back({.segments = {}, .begins_at = layer});
    chains.back().segments.push_back({.kind = SegmentKind::attention, .layer = layer});
    chains.back().segments.push_back({.kind = SegmentKind::mlp, .layer = layer});
    next = layer + 1;
  }
  if (!selection.head) return chains;
  if (next != config.num_hidden_layers)
    chains.push_back({.segments = {}, .begins_at = config.num_hidden_layers});
  chains.back().segments.push_back({.kind = SegmentKind::head});
  return chains;
}

std::vector<WeightSpec> selected_specs(const LayerSelection& selection, const ModelConfig& config) {
  std::vector<WeightSpec> specs;
  const auto add = [&](const std::vector<WeightSpec>& more) {
    specs.insert(specs.end(), more.begin(), more.end());
  };
  if (selection.embed) add(segment_specs(config, {.kind = SegmentKind::embed}));
  for (const int64_t layer : selection.layers) add(layer_weight_specs(config, layer));
  if (selection.head) add(segment_specs(config, {.kind = SegmentKind::head}));
  return specs;
}

std::string describe(const LayerSelection& selection) {
  std::string text = selection.embed ? "embedding" : "";
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  if (!selection.layers.empty())
    add((selection.layers.size() == 1 ? "layer " : "layers ") + listed(selection.layers));
  if (selection.head) add("head");
  return text;
}

}  // namespace dsv32::harness
