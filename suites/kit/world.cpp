#include "suites/kit/world.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "harness/judge/decisions/keys.h"
#include "src/model/sketch.h"
#include "src/model/weights.h"

namespace dsv32::suites {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Errors of a clean side, in roundings of its dtype: an op sums a few of them.
constexpr double kErrorSize = 4;

ModelConfig world_config() {
  ModelConfig config;
  config.name = "tiny";
  config.vocab_size = 100;
  config.hidden_size = 64;
  config.intermediate_size = 128;
  config.moe_intermediate_size = 32;
  config.num_hidden_layers = 2;
  config.num_attention_heads = config.num_key_value_heads = 4;
  config.n_shared_experts = 1;
  config.n_routed_experts = 16;
  config.num_experts_per_tok = 4;
  config.n_group = 4;
  config.topk_group = 2;
  config.routed_scaling_factor = 2.5;
  config.q_lora_rank = 32;
  config.kv_lora_rank = 16;
  config.qk_nope_head_dim = config.qk_rope_head_dim = config.v_head_dim = 16;
  config.first_k_dense_replace = 1;
  config.max_position_embeddings = 128;
  config.index_n_heads = 16;
  config.index_head_dim = 32;
  config.index_topk = 8;
  return config;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The `count` best of these indices, best first: score descending, index ascending.
std::vector<int64_t> best(const std::vector<double>& scores, std::vector<int64_t> among,
                          int64_t count) {
  std::stable_sort(among.begin(), among.end(),
                   [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  among.resize(std::min<int64_t>(count, std::ssize(among)));
  return among;
}

std::vector<int64_t> range(int64_t begin, int64_t end) {
  std::vector<int64_t> all(end - begin);
  std::iota(all.begin(), all.end(), begin);
  return all;
}

// docs/spec.md 1.8 in double, in its plainest form.
std::vector<int64_t> choose_experts(const ModelConfig& config, const std::vector<double>& scores) {
  const int64_t size = config.n_routed_experts / config.n_group;
  std::vector<double> groups;
  for (int64_t g = 0; g < config.n_group; ++g) {
    const auto two = best(scores, range(g * size, (g + 1) * size), 2);
    groups.push_back(scores[two[0]] + scores[two[1]]);
  }
  std::vector<int64_t> members;
  for (const int64_t g : best(groups, range(0, config.n_group), config.topk_group))
    for (const int64_t e : range(g * size, (g + 1) * size)) members.push_back(e);
  std::sort(members.begin(), members.end());
  auto chosen = best(scores, members, config.num_experts_per_tok);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace

double Noise::uniform() {
  const uint64_t word = next_++ % words_.size();
  if (word == 0) words_ = stream_.block(next_);
  return static_cast<double>(words_[word] >> 11) * 0x1p-53;
}

double Noise::normal() {
  const double radius = std::sqrt(-2 * std::log(1 - uniform()));
  return radius * std::cos(2 * 3.14159265358979323846 * uniform());
}

Case world_case() {
  Case c;
  c.name = "world";
  c.config = world_config();
  c.config_name = "tiny";
  c.B = 2;
  c.S = 33;
  c.pad = 5;
  return c;
}

World::World(uint64_t seed, DType dtype, Case the_case)
    : seed(seed), dtype(dtype), c(std::move(the_case)), batch(make_batch(c)) {
  for (int64_t layer = 0; layer < c.config.num_hidden_layers; ++layer) {
    make_scores(layer);
    make_attention(layer);
    if (!c.config.is_dense_mlp(layer)) make_router(layer);
  }
  for (const std::string& tap : forward_taps(c.config)) make_values(tap);
  for (const std::string& tap : gradient_taps(c.config)) make_values(tap);
}

void World::make_values(const std::string& tap) {
  if (oracle.has(tap)) return;
  const Shape shape = *tap_shape(*parse_tap(tap), c.config, c.B, c.S);
  Noise noise(seed, tap);
  std::vector<double> values(numel(shape));
  for (double& value : values) value = noise.normal();
  if (tap == "loss.lm") values[0] = 4.6 + 0.1 * values[0];
  oracle.put(tap, HostTensor::from_doubles(DType::float64, shape, values));
  put_sides(tap);
}

void World::put_sides(const std::string& tap) {
  reference.put(tap, noisy(tap, "reference"));
  judged.put(tap, noisy(tap, "judged"));
  std::vector<double> moved = truth(tap).to_doubles();
  Noise noise(seed, tap + ".probe");
  for (double& value : moved)
    if (value != 0 && std::isfinite(value))
      value *= 1 + 4 * harness::kProbePerturbation * noise.normal();
  probe.put(tap, HostTensor::from_doubles(DType::float32, truth(tap).shape(), moved));
}

HostTensor World::noisy(const std::string& tap, const std::string& side) const {
  std::vector<double> values = truth(tap).to_doubles();
  double square = 0, count = 0;
  for (const double value : values)
    if (value != 0 && std::isfinite(value)) square += value * value, ++count;
  const double size = kErrorSize * rounding_floor(dtype) * std::sqrt(square / std::max(count, 1.0));
  Noise noise(seed, tap + "." + side);
  for (double& value : values)
    if (value != 0 && std::isfinite(value)) value += size * noise.normal();
  return HostTensor::from_doubles(dtype, truth(tap).shape(), values);
}

void World::make_scores(int64_t layer) {
  const std::string name = layer_tap(layer, "ix.scores");
  Noise noise(seed, name);
  std::vector<double> scores(c.B * c.S * c.S, -kInfinity);
  std::vector<double> picks(c.B * c.S * c.config.index_topk, -1);
  for (size_t i = 0; i < scores.size(); ++i) {
    const int64_t row = i / c.S;
    if (harness::visible(batch, row / c.S, row % c.S, i % c.S)) scores[i] = noise.normal();
  }
  oracle.put(name, HostTensor::from_doubles(DType::float64, {c.B, c.S, c.S}, scores));
  put_sides(name);
  const std::vector<double> own = judged.find(name)->to_doubles();
  for (int64_t row = 0; row < c.B * c.S; ++row) {
    std::vector<int64_t> seen;
    for (int64_t t = 0; t < c.S; ++t)
      if (std::isfinite(own[row * c.S + t])) seen.push_back(t);
    const std::vector<double> line(own.begin() + row * c.S, own.begin() + (row + 1) * c.S);
    const std::vector<int64_t> top = best(line, seen, c.config.index_topk);
    std::copy(top.begin(), top.end(), picks.begin() + row * c.config.index_topk);
  }
  const std::string topk = layer_tap(layer, "topk");
  for (Trace* side : {&oracle, &reference, &probe, &judged})
    side->put(topk, HostTensor::from_doubles(DType::int32, {c.B, c.S, c.config.index_topk}, picks));
  support.push_back(harness::attended_keys(c.config, batch, judged.find(topk)));
}

void World::make_attention(int64_t layer) {
  const int64_t H = c.config.num_attention_heads;
  const Shape shape = {c.B, H, c.S, c.S};
  Noise noise(seed, layer_tap(layer, "attn.logits"));
  std::vector<double> logits(numel(shape)), probs(numel(shape));
  for (int64_t row = 0; row < c.B * H * c.S; ++row) {
    const int64_t b = row / (H * c.S), s = row % c.S;
    const uint8_t* keys = &support[layer][(b * c.S + s) * c.S];
    double sum = 0;
    for (int64_t t = 0; t < c.S; ++t) {
      logits[row * c.S + t] = 2 * noise.normal();
      if (keys[t]) sum += std::exp(logits[row * c.S + t]);
    }
    for (int64_t t = 0; t < c.S; ++t)
      probs[row * c.S + t] = keys[t] ? std::exp(logits[row * c.S + t]) / sum : 0;
  }
  oracle.put(layer_tap(layer, "attn.logits"),
             HostTensor::from_doubles(DType::float64, shape, logits));
  put_sides(layer_tap(layer, "attn.logits"));
  oracle.put(layer_tap(layer, "attn.probs"),
             HostTensor::from_doubles(DType::float64, shape, probs));
  put_sides(layer_tap(layer, "attn.probs"));
}

void World::make_router(int64_t layer) {
  const int64_t E = c.config.n_routed_experts, K = c.config.num_experts_per_tok;
  make_values(layer_tap(layer, "router.logits"));
  const std::vector<double> own = judged.find(layer_tap(layer, "router.logits"))->to_doubles();
  Noise noise(seed, layer_tap(layer, "bias"));
  std::vector<double> bias(E), experts;
  for (double& value : bias) value = 0.1 * noise.normal();
  for (int64_t row = 0; row < c.B * c.S; ++row) {
    std::vector<double> scores(E);
    for (int64_t e = 0; e < E; ++e)
      scores[e] = sigmoid(own[row * E + e]) + static_cast<float>(bias[e]);
    const std::vector<int64_t> chosen = choose_experts(c.config, scores);
    experts.insert(experts.end(), chosen.begin(), chosen.end());
  }
  biases["model.layers." + std::to_string(layer) + ".mlp.gate.e_score_correction_bias"] =
      HostTensor::from_doubles(DType::float32, {E}, bias);
  for (Trace* side : {&oracle, &reference, &probe, &judged})
    side->put(layer_tap(layer, "router.experts"),
              HostTensor::from_doubles(DType::int32, {c.B, c.S, K}, experts));
}

harness::Comparison World::comparison(const std::string& tap, harness::Mode mode) const {
  harness::Comparison comparison;
  comparison.subject.label = "judged";
  comparison.config = &c.config;
  comparison.batch = &batch;
  comparison.tap = *parse_tap(tap);
  comparison.mode = mode;
  comparison.dtype = dtype;
  comparison.judged = judged.find(tap);
  comparison.yardstick = yardsticks().of(comparison.tap);
  if (comparison.tap.info.kind == TapKind::attention)
    comparison.support = &support[*comparison.tap.layer];
  return comparison;
}

harness::Evidence World::evidence() const {
  harness::Evidence evidence;
  evidence.subject.label = "judged";
  evidence.c = &c;
  evidence.batch = &batch;
  evidence.dtype = dtype;
  evidence.judged = &judged;
  evidence.staged = yardsticks();
  evidence.forced = yardsticks();
  evidence.biases = biases;
  return evidence;
}

void World::corrupt(const std::string& tap, const std::vector<double>& values) {
  const HostTensor& old = *judged.find(tap);
  judged.put(tap, HostTensor::from_doubles(old.dtype(), old.shape(), values));
}

golden::SketchedTap make_sketch(const World& world, const std::string& tap,
                                const HostTensor& values) {
  const harness::Comparison c = world.comparison(tap);
  const bool weight = c.tap.info.kind == TapKind::gradient;
  Batch unpadded = world.batch;  // a sketch holds every row
  std::fill(unpadded.attention_mask.begin(), unpadded.attention_mask.end(), 1);
  const harness::RowLayout layout(c.tap, values.shape(), &unpadded, c.support,
                                  harness::RowView::sketch);
  golden::SketchedTap sketch;
  sketch.shape = values.shape();
  std::vector<double> row;
  std::vector<uint8_t> signs;
  double projections[kProjections];
  for (const harness::Row& at : layout.rows()) {
    layout.gather(values, at, row);
    if (signs.empty()) signs = sketch_signs(tap, std::ssize(row));
    for (double& value : row) value = value == -kInfinity ? 0 : value;
    project(row, signs, projections);
    sketch.row_norms.push_back(
        std::sqrt(std::inner_product(row.begin(), row.end(), row.begin(), 0.0)));
    sketch.projections.insert(sketch.projections.end(), projections, projections + kProjections);
    const bool chosen = !weight && (at.number == world.c.S - 1 || at.number == 2 * world.c.S - 1);
    if (!chosen) continue;
    sketch.row_index.push_back(at.number);
    sketch.rows.insert(sketch.rows.end(), row.begin(), row.end());
  }
  if (!weight) return sketch;
  const int64_t length =
      values.shape().size() < 2 ? values.numel() : values.numel() / values.shape()[0];
  sketch.row_index = {values.shape().size() < 2 ? 0 : values.shape()[0] / 2};
  for (int64_t i = 0; i < length; ++i)
    sketch.rows.push_back(values.at(sketch.row_index[0] * length + i));
  return sketch;
}

const harness::Measure& measure(const harness::Verdict& verdict, const std::string& metric) {
  for (const harness::Measure& measure : verdict.measures)
    if (measure.metric == metric) return measure;
  throw std::runtime_error(verdict.tap + " has no measure " + metric);
}

bool passes(const harness::Verdict& verdict) { return verdict.trust == harness::Trust::pass; }
bool fails(const harness::Verdict& verdict) { return verdict.trust == harness::Trust::fail; }

std::string show(const harness::Verdict& verdict) {
  std::ostringstream text;
  text << verdict.tap << " " << to_string(verdict.mode) << " " << to_string(verdict.trust);
  for (const harness::Measure& m : verdict.measures)
    text << "; " << m.metric << " " << m.measured << "/" << m.limit;
  text << "; " << verdict.structure << "; " << verdict.note;
  return text.str();
}

}  // namespace dsv32::suites
