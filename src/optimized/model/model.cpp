#include "src/optimized/model/model.h"

#include "src/bridge/bridge.h"
#include "src/model/errors.h"
#include "src/optimized/kernels/index_scores.h"
#include "src/optimized/kernels/masked_mha.h"
#include "src/optimized/kernels/rms_norm.h"
#include "src/optimized/kernels/route.h"
#include "src/optimized/kernels/select_topk.h"
#include "src/optimized/kernels/sparse_mla.h"
#include "src/optimized/model/layer.h"
#include "src/optimized/optimized.h"

namespace dsv32::optimized {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kFinalNorm = "model.norm.weight";
constexpr const char* kHead = "lm_head.weight";
constexpr const char* kSharedExperts = "mlp.shared_experts.";

[[noreturn]] void refuse(const std::string& what, const std::string& expected,
                         const std::string& got) {
  throw Error(ExitCode::usage,
              {.where = "--impl optimized", .what = what, .expected = expected, .got = got});
}

at::ScalarType activation_type(DType dtype) {
  if (dtype != DType::float32 && dtype != DType::bfloat16)
    refuse("dtype", "float32 or bfloat16", std::string(to_string(dtype)));
  return scalar_type(dtype);
}

/// What in_dtype makes of spec-1 and DType::fp8.
bool is_fp8_mode(const RunOptions& options) {
  return options.dtype == DType::bfloat16 && options.dialect.fp8 == in_dtype({}, DType::fp8).fp8;
}

void expect_spec(const RunOptions& options) {
  Dialect plain = options.dialect;
  plain.name = Dialect{}.name;
  plain.rounding = Dialect{}.rounding;
  if (is_fp8_mode(options)) plain.fp8 = {};
  if (!(plain == Dialect{})) refuse("dialect", "spec-1", options.dialect.name);
  if (is_fp8_mode(options) && options.backward) refuse("backward", "none in fp8 mode", "one");
  if (options.perturbation > 0) refuse("perturbation", "none", "a condition probe");
  if (options.backward && options.feeding == Feeding::staged)
    refuse("backward", "a free or forced run", "a staged one");
}

/// Everything a layer leaves for its backward pass.
struct LayerState {
  Normed attention_norm, mlp_norm;
  AttentionState attention;
  MlpState mlp;
};

/// One pass of one batch. Layers are the outer loop and chunks the inner one, so that each layer's
/// weights are loaded once.
class Pass {
 public:
  Pass(const ModelConfig& config, const WeightSource& source, const OptimizedOptions& how,
       const Batch& batch, const RunOptions& options)
      : source_(source),
        batch_(batch),
        options_(options),
        ctx_{.config = config,
             .options = how,
             .ops = OpCaller(how.kernels),
             .objective = options.objective,
             .type = activation_type(options.dtype),
             .device = at::Device(options.device),
             .staged = options.feeding == Feeding::staged,
             .fp8 = is_fp8_mode(options) ? source.fp8() : std::nullopt,
             .experts_in_groups = options.segment.has_value()},
        flow_(config, batch, options,
              {.ordinary = ctx_.type,
               .exact = at::kFloat,
               .round = [type = ctx_.type](const Tensor& x) { return x.to(type); }},
              ctx_.device) {
    ModelConfig without_layers = config;
    without_layers.num_hidden_layers = 0;
    outer_specs_ = weight_specs(without_layers);
    split_into_chunks();
  }

  /// Greedy decoding after the prompt, chunk by chunk through caches of all layers; `history` is
  /// the batch of this pass, and grows.
  Trace decode(History& history) {
    std::vector<Weights> weights;
    for (int64_t layer = 0; layer < ctx_.config.num_hidden_layers; ++layer)
      weights.push_back(layer_weights(layer));
    Weights outer = outer_weights();
    std::vector<KeyCache> caches;
    for (size_t layer = 0; layer < weights.size(); ++layer) caches.push_back(empty_cache());
    for (size_t i = 0; i < chunks_.size(); ++i) {
      begin_chunk(i);
      const int64_t begin = chunks_[i].first_query, count = chunks_[i].valid.size(1);
      Stream stream = embedded(outer, begin, count);
      for (size_t layer = 0; layer < weights.size(); ++layer) {
        LayerState unused;
        Tensor kl_sum;
        stream = run_layer(static_cast<int64_t>(layer), weights[layer], stream, chunks_[i],
                           caches[layer], kl_sum, unused);
      }
      const Tensor normed =
          flow_.put("final_norm", rms_norm(ctx_, stream, outer.get(kFinalNorm)).y);
      history.emit(best_tokens(flow_.put("logits", linear(normed, outer.get(kHead)))));
    }
    Trace trace = flow_.finish();
    trace.put("gen.tokens", history.tokens());
    return trace;
  }

  Trace run() {
    if (options_.segment && options_.backward) return segment_backward(*options_.segment);
    if (options_.segment) {
      run_segment(*options_.segment, *options_.stream);
      return flow_.finish();
    }
    forward();
    Trace trace = flow_.finish();
    if (options_.backward) backward(trace);
    return trace;
  }

 private:
  Tensor host_tensor(const std::vector<int64_t>& values) const {
    return at::tensor(values, at::kLong).view({batch_.B, batch_.S});
  }

  ChunkInputs inputs_of(int64_t begin, int64_t end) const {
    const Tensor mask = (host_tensor(batch_.attention_mask) != 0).to(ctx_.device);
    const Tensor positions = host_tensor(batch_.position_ids).narrow(1, begin, end - begin);
    return {.rope = rope_table(ctx_, positions),
            .mask = mask.narrow(1, 0, end).contiguous(),
            .valid = mask.narrow(1, begin, end - begin),
            .first_query = begin};
  }

  void split_into_chunks() {
    const std::vector<int64_t> lengths =
        batch_.chunks.empty() ? std::vector<int64_t>{batch_.S} : batch_.chunks;
    int64_t begin = 0;
    for (const int64_t length : lengths) {
      chunks_.push_back(inputs_of(begin, begin + length));
      begin += length;
    }
  }
  bool chunked() const { return chunks_.size() > 1; }

  Weights layer_weights(int64_t layer) const {
    return {source_, layer_weight_specs(ctx_.config, layer),
            "model.layers." + std::to_string(layer) + ".", ctx_.type, ctx_.device};
  }
  Weights outer_weights() const { return {source_, outer_specs_, "", ctx_.type, ctx_.device}; }

  void say(const char* pass, int64_t layer) const {
    if (options_.progress)
      options_.progress(std::string(pass) + " layer " + std::to_string(layer + 1) + "/" +
                        std::to_string(ctx_.config.num_hidden_layers));
  }

  // --- forward ----------------------------------------------------------------------------------

  void forward() {
    std::vector<Stream> streams = embed();
    for (int64_t layer = 0; layer < ctx_.config.num_hidden_layers; ++layer) {
      say("forward", layer);
      if (options_.backward) inputs_.push_back(streams.front());
      Weights weights = layer_weights(layer);
      KeyCache cache = empty_cache();
      Tensor kl_sum;
      for (size_t i = 0; i < chunks_.size(); ++i) {
        begin_chunk(i);
        LayerState state;
        streams[i] = run_layer(layer, weights, streams[i], chunks_[i], cache, kl_sum, state);
        if (options_.backward && !ctx_.options.checkpointing) states_.push_back(std::move(state));
      }
      flow_.begin_chunk(0, batch_.S);
      if (ctx_.trains_indexer())
        kl_losses_.push_back(
            flow_.put(layer_tap(layer, "loss.kl"), kl_sum / static_cast<double>(valid_rows())));
    }
    if (options_.backward) inputs_.push_back(streams.front());
    head(streams);
  }

  void begin_chunk(size_t i) {
    const int64_t begin = chunks_[i].first_query;
    flow_.begin_chunk(begin, begin + chunks_[i].valid.size(1));
  }

  /// Only a run in chunks has keys from before.
  KeyCache empty_cache() const {
    if (!chunked()) return {};
    const ModelConfig& c = ctx_.config;
    const auto style = at::TensorOptions().dtype(ctx_.type).device(ctx_.device);
    return {at::zeros({batch_.B, batch_.S, c.kv_lora_rank + c.qk_rope_head_dim}, style),
            at::zeros({batch_.B, batch_.S, c.index_head_dim}, style)};
  }

  std::vector<Stream> embed() {
    Weights weights = outer_weights();
    std::vector<Stream> streams;
    for (size_t i = 0; i < chunks_.size(); ++i) {
      begin_chunk(i);
      streams.push_back(embedded(weights, chunks_[i].first_query, chunks_[i].valid.size(1)));
    }
    return streams;
  }

  Stream embedded(Weights& weights, int64_t first, int64_t count) {
    const Tensor ids = host_tensor(batch_.input_ids).to(ctx_.device).narrow(1, first, count);
    const Tensor hidden = flow_.put("embed", at::embedding(weights.get(kEmbedding), ids));
    return {.hidden = hidden, .x = hidden, .delta = {}};
  }

  Stream run_layer(int64_t layer, Weights& weights, const Stream& in, const ChunkInputs& chunk,
                   KeyCache& cache, Tensor& kl_sum, LayerState& state) {
    return mlp_half(layer, weights, attention_half(layer, weights, in, chunk, cache, kl_sum, state),
                    state);
  }

  Stream attention_half(int64_t layer, Weights& weights, const Stream& in, const ChunkInputs& chunk,
                        KeyCache& cache, Tensor& kl_sum, LayerState& state) {
    state.attention_norm = rms_norm(ctx_, in, weights.get("input_layernorm.weight"));
    const Tensor x = flow_.put(layer_tap(layer, "attn_norm"), state.attention_norm.y);
    const Tensor attended =
        Attention(ctx_, layer, weights, chunk, flow_).forward(x, cache, kl_sum, state.attention);
    return {.hidden = in.hidden + attended, .x = in.hidden, .delta = attended};
  }

  Stream mlp_half(int64_t layer, Weights& weights, const Stream& middle, LayerState& state) {
    state.mlp_norm = rms_norm(ctx_, middle, weights.get("post_attention_layernorm.weight"));
    const Tensor y = flow_.put(layer_tap(layer, "ffn_norm"), state.mlp_norm.y);
    const Tensor out = mlp_forward(ctx_, layer, y, weights, flow_, state.mlp);
    const Tensor hidden = flow_.put(layer_tap(layer, "hidden"), middle.hidden + out);
    return {.hidden = hidden, .x = middle.hidden, .delta = out};
  }

  // --- one segment ------------------------------------------------------------------------------

  Stream stream_of(const StreamState& state) const {
    const auto part = [&](const char* name) {
      return to_torch(state.at(name)).to(ctx_.device, ctx_.type);
    };
    Stream stream{.hidden = part("hidden"), .x = {}, .delta = {}};
    stream.x = state.contains("x") ? part("x") : stream.hidden;
    if (state.contains("delta")) stream.delta = part("delta");
    return stream;
  }

  void leave(const Stream& stream, StreamState& state) const {
    const DType dtype = dtype_of(ctx_.type);
    state = {{"hidden", to_host(stream.hidden, dtype, options_.room)}};
    if (ctx_.type == at::kFloat || !stream.delta.defined()) return;  // the sum was not rounded
    state["x"] = to_host(stream.x, dtype, options_.room);
    state["delta"] = to_host(stream.delta, dtype, options_.room);
  }

  void run_segment(const Segment& segment, StreamState& state) {
    flow_.begin_chunk(0, batch_.S);
    if (segment.kind == SegmentKind::embed) return leave(embed_rows(), state);
    const Stream in = stream_of(state);
    if (segment.kind == SegmentKind::head) return head({in});
    Weights weights = layer_weights(segment.layer);
    LayerState unused;
    if (segment.kind == SegmentKind::mlp)
      return leave(mlp_half(segment.layer, weights, in, unused), state);
    KeyCache cache;
    Tensor kl_sum;
    leave(attention_half(segment.layer, weights, in, chunks_.front(), cache, kl_sum, unused),
          state);
  }

  /// Only the rows of the table that the batch needs are read.
  Stream embed_rows() {
    Weights weights = outer_weights();
    const Tensor rows = weights.get_rows(kEmbedding, batch_.input_ids);
    const Tensor hidden = flow_.put("embed", rows.view({batch_.B, batch_.S, -1}));
    return {.hidden = hidden, .x = hidden, .delta = {}};
  }

  void head(const std::vector<Stream>& streams) {
    Weights weights = outer_weights();
    const bool keep_logits = !options_.wanted || options_.wanted("logits");
    std::vector<Tensor> normed;
    for (size_t i = 0; i < streams.size(); ++i) {
      begin_chunk(i);
      normed.push_back(
          flow_.put("final_norm", rms_norm(ctx_, streams[i], weights.get(kFinalNorm)).y));
      if (keep_logits) put_logits(normed.back(), weights);
    }
    flow_.begin_chunk(0, batch_.S);
    // The fused loss never holds logits, so that a stage of it alone has no input.
    if (!ctx_.staged) flow_.put("loss.lm", lm_loss(at::cat(normed, 1), weights).loss);
    if (ctx_.trains_indexer()) flow_.put("loss.kl", at::stack(kl_losses_).sum() / layer_count());
  }

  /// Of a segment's run those of few tokens, where all would be too large.
  void put_logits(const Tensor& normed, Weights& weights) {
    const std::vector<int64_t> rows = kept_logit_rows(ctx_.config, batch_.B, batch_.S);
    if (!options_.segment || static_cast<int64_t>(rows.size()) == batch_.S) {
      flow_.put("logits", linear(normed, weights.get(kHead)));
      return;
    }
    const Tensor kept = at::tensor(rows, at::kLong).to(ctx_.device);
    flow_.put_kept("logits", linear(normed.index_select(1, kept), weights.get(kHead)));
  }

  struct Loss {
    Tensor x, labels;  // [N,hidden], [N]: every token but the last predicts the next one
    Tensor loss, lse;
  };
  Loss lm_loss(const Tensor& normed, Weights& weights) const {
    const int64_t S = batch_.S;
    const Tensor labels = host_tensor(batch_.labels).to(ctx_.device);
    Loss l{.x = normed.narrow(1, 0, S - 1).flatten(0, 1),
           .labels = labels.narrow(1, 1, S - 1).flatten()};
    std::tie(l.loss, l.lse) =
        ctx_.ops.call<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&)>(
            "linear_cross_entropy", l.x, weights.get(kHead), l.labels);
    return l;
  }

  int64_t valid_rows() const {
    int64_t rows = 0;
    for (const int64_t bit : batch_.attention_mask) rows += bit;
    return std::max<int64_t>(rows, 1);
  }
  double layer_count() const { return static_cast<double>(ctx_.config.num_hidden_layers); }

  // --- backward ---------------------------------------------------------------------------------
  // From the head down. A layer's state is that of the forward pass, or is made again from the
  // layer's input.

  void backward(Trace& trace) {
    flow_.replay();
    flow_.begin_chunk(0, batch_.S);
    Tensor upstream;  // undefined without an LM loss: only the indexer has gradients then
    if (ctx_.objective.lm) upstream = head_backward(inputs_.back());
    inputs_.pop_back();
    for (int64_t layer = ctx_.config.num_hidden_layers; layer-- > 0;) {
      say("backward", layer);
      flow_.put_slope(layer_tap(layer, "hidden"), upstream);
      upstream = layer_backward(layer, upstream);
      inputs_.pop_back();
    }
    flow_.put_slope("embed", upstream);
    if (upstream.defined() && wants(kEmbedding)) embedding_gradient(upstream);
    trace.slopes = flow_.take_slopes();
    for (const std::string& name : gradient_taps(ctx_.config, ctx_.objective)) {
      const auto found = gradients_.find(name);
      if (found != gradients_.end()) trace.put(name, found->second);
    }
  }

  bool wants(const std::string& weight) const {
    return !options_.wanted || options_.wanted("grad." + weight);
  }

  KeepGradient keeper(const std::string& prefix) {
    return [this, prefix](const std::string& name, const Tensor& gradient) {
      if (wants(prefix + name))
        gradients_["grad." + prefix + name] = to_host(gradient, options_.dtype);
    };
  }

  Tensor head_backward(const Stream& in) {
    Weights weights = outer_weights();
    const Normed normed = rms_norm(ctx_, in, weights.get(kFinalNorm));
    const Loss l = lm_loss(normed.y, weights);
    const auto [dx, dweight] = ctx_.ops.call<std::tuple<Tensor, Tensor>(
        const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&)>(
        "linear_cross_entropy_backward", at::ones_like(l.loss), l.x, weights.get(kHead), l.labels,
        l.lse);
    const KeepGradient keep = keeper("");
    keep(kHead, dweight);
    const Tensor rows = dx.to(ctx_.type).view({batch_.B, batch_.S - 1, -1});
    const Tensor dnormed = at::constant_pad_nd(rows, {0, 0, 0, 1});  // the last token predicts none
    flow_.put_slope("final_norm", dnormed);
    return rms_norm_backward(ctx_, dnormed, normed, weights.get(kFinalNorm), {}, kFinalNorm, keep);
  }

  // --- the backward pass of one segment
  // ---------------------------------------------------------

  Trace segment_backward(const Segment& segment) {
    flow_.begin_chunk(0, batch_.S);
    flow_.replay_feed();
    Trace trace;
    Weights weights = layer_weights(segment.layer);
    const KeepGradient keep = [&](const std::string& name, const Tensor& gradient) {
      const std::string tap = "grad." + weights.prefix() + name;
      if (!options_.wanted || options_.wanted(tap))
        trace.put(tap, to_host(gradient, options_.dtype, options_.room));
    };
    const Stream in = stream_of(*options_.stream);
    StreamState& gradient = *options_.gradient;
    const Tensor upstream = to_torch(gradient.at("hidden")).to(ctx_.device, ctx_.type);
    const Tensor before =
        segment.kind == SegmentKind::attention
            ? attention_half_backward(segment.layer, weights, in, upstream, keep)
            : mlp_half_backward(segment.layer, weights, in, upstream, keep, gradient);
    if (before.defined())
      gradient = {{"hidden", to_host(before, dtype_of(ctx_.type), options_.room)}};
    return trace;
  }

  Tensor attention_half_backward(int64_t layer, Weights& weights, const Stream& in,
                                 const Tensor& upstream, const KeepGradient& keep) {
    LayerState state;
    KeyCache cache;
    Tensor kl_sum;
    attention_half(layer, weights, in, chunks_.front(), cache, kl_sum, state);
    cache = {};
    const Tensor dx = Attention(ctx_, layer, weights, chunks_.front(), flow_)
                          .backward(upstream, 0, state.attention, keep);
    return rms_norm_backward(ctx_, dx, state.attention_norm, weights.get("input_layernorm.weight"),
                             upstream, "input_layernorm.weight", keep);
  }

  /// Undefined behind some of the experts: the others hand back more.
  Tensor mlp_half_backward(int64_t layer, Weights& weights, const Stream& middle,
                           const Tensor& upstream, const KeepGradient& keep,
                           StreamState& gradient) {
    const std::string norm = "post_attention_layernorm.weight";
    const Normed normed = rms_norm(ctx_, middle, weights.get(norm));
    MlpState state;
    RoutedGradients sums;
    const bool dense = ctx_.config.is_dense_mlp(layer);
    if (dense) {
      mlp_forward(ctx_, layer, normed.y, weights, flow_, state);
    } else {
      mlp_again(ctx_, layer, normed.y, weights, flow_, state);
      sums = sums_of_experts(gradient);
    }
    if (options_.experts) {
      experts_backward(ctx_, *options_.experts, upstream, weights, state, keep, sums);
      leave_sums(sums, gradient);
      return {};
    }
    if (!dense) {
      sums.dx = sums.dx.to(ctx_.type);
      swiglu_mlp(ctx_, state.y, weights, kSharedExperts, state.dense);
    }
    const Tensor dy = rest_backward(ctx_, layer, upstream, weights, state, sums, keep, flow_);
    return rms_norm_backward(ctx_, dy, normed, weights.get(norm), upstream, norm, keep);
  }

  /// What the experts before have handed back, float32; zeros before the first. On the host they
  /// are the gradient's own memory.
  RoutedGradients sums_of_experts(StreamState& gradient) const {
    const auto sum = [&](const char* part, int64_t width) {
      if (!gradient.contains(part)) {
        const Shape shape = {batch_.B * batch_.S, width};
        gradient[part] = options_.room ? options_.room(DType::float32, shape)
                                       : HostTensor(DType::float32, shape);
      }
      return to_torch(gradient.at(part)).to(ctx_.device);
    };
    return {sum("dx", ctx_.config.hidden_size), sum("dweights", ctx_.config.num_experts_per_tok)};
  }

  void leave_sums(const RoutedGradients& sums, StreamState& gradient) const {
    if (ctx_.device.is_cpu()) return;
    gradient["dx"] = to_host(sums.dx, DType::float32, options_.room);
    gradient["dweights"] = to_host(sums.dweights, DType::float32, options_.room);
  }

  LayerState state_of(int64_t layer, Weights& weights) {
    if (!ctx_.options.checkpointing) {
      LayerState state = std::move(states_.back());
      states_.pop_back();
      return state;
    }
    LayerState state;
    KeyCache cache;
    Tensor kl_sum;
    run_layer(layer, weights, inputs_.back(), chunks_.front(), cache, kl_sum, state);
    return state;
  }

  Tensor layer_backward(int64_t layer, const Tensor& upstream) {
    Weights weights = layer_weights(layer);
    const LayerState state = state_of(layer, weights);
    const KeepGradient keep = keeper(weights.prefix());
    const double kl_scale =
        ctx_.objective.kl_weight / layer_count() / static_cast<double>(valid_rows());
    Attention attention(ctx_, layer, weights, chunks_.front(), flow_);
    if (!upstream.defined()) return attention.backward({}, kl_scale, state.attention, keep);
    const Tensor dy = mlp_backward(ctx_, layer, upstream, weights, state.mlp, keep, flow_);
    flow_.put_slope(layer_tap(layer, "ffn_norm"), dy);
    const Tensor dmiddle =
        rms_norm_backward(ctx_, dy, state.mlp_norm, weights.get("post_attention_layernorm.weight"),
                          upstream, "post_attention_layernorm.weight", keep);
    flow_.put_slope(layer_tap(layer, "attn.out"), dmiddle);
    const Tensor dx = attention.backward(dmiddle, kl_scale, state.attention, keep);
    flow_.put_slope(layer_tap(layer, "attn_norm"), dx);
    return rms_norm_backward(ctx_, dx, state.attention_norm, weights.get("input_layernorm.weight"),
                             dmiddle, "input_layernorm.weight", keep);
  }

  void embedding_gradient(const Tensor& upstream) {
    const Tensor ids = host_tensor(batch_.input_ids).to(ctx_.device).flatten();
    keeper("")(kEmbedding,
               ctx_.ops.call<Tensor(const Tensor&, const Tensor&, int64_t)>(
                   "embedding_backward", upstream.flatten(0, 1), ids, ctx_.config.vocab_size));
  }

  const WeightSource& source_;
  const Batch& batch_;
  const RunOptions& options_;
  Context ctx_;
  TapFlow flow_;
  std::vector<WeightSpec> outer_specs_;
  std::vector<ChunkInputs> chunks_;
  std::vector<Stream> inputs_;      // of every layer, then of the head
  std::vector<LayerState> states_;  // without checkpointing
  std::vector<Tensor> kl_losses_;   // of every layer
  std::map<std::string, HostTensor> gradients_;
};

class Optimized : public Implementation {
 public:
  Optimized(const ModelConfig& config, const WeightSource& weights, const OptimizedOptions& options)
      : config_(config), weights_(weights), options_(options) {}

  Trace run(const Batch& batch, const RunOptions& options) const override {
    validate(batch, config_, "optimized");
    const std::string too_large = unsupported(config_);
    if (!too_large.empty()) refuse("config", "sizes that the kernels take", too_large);
    expect_spec(options);
    const c10::InferenceMode no_autograd;
    if (options.decoding) {
      History history(batch, *options.decoding);
      const Batch& grown = history.in_steps();
      return Pass(config_, weights_, options_, grown, options).decode(history);
    }
    return Pass(config_, weights_, options_, batch, options).run();
  }
  std::string name() const override { return "optimized"; }

 private:
  ModelConfig config_;
  const WeightSource& weights_;
  OptimizedOptions options_;
};

}  // namespace

std::string unsupported(const ModelConfig& config) {
  struct Size {
    const char* name;
    int64_t value, most;
  };
  const ModelConfig& c = config;
  const Size sizes[] = {
      {"hidden_size", c.hidden_size, kRmsNormMaxWidth},
      {"index_head_dim", c.index_head_dim, kIndexMaxDim},
      {"index_topk", c.index_topk, kMaxTopk},
      {"qk_nope_head_dim + qk_rope_head_dim", c.qk_head_dim(), kMaxMhaWidth},
      {"v_head_dim", c.v_head_dim, kMaxMhaWidth},
      {"kv_lora_rank + qk_rope_head_dim", c.kv_lora_rank + c.qk_rope_head_dim, kMaxMlaWidth},
      {"n_routed_experts", c.n_routed_experts, kRouteMaxExperts},
      {"n_group", c.n_group, kRouteMaxGroups},
      {"num_experts_per_tok", c.num_experts_per_tok, kRouteMaxChosen}};
  for (const Size& size : sizes)
    if (size.value > size.most)
      return std::string(size.name) + ": expected at most " + std::to_string(size.most) + ", got " +
             std::to_string(size.value);
  return "";
}

bool has_device_kernels() {
  load_ops();
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow("dsv32::rms_norm", "")
      .hasKernelForDispatchKey(c10::DispatchKey::CUDA);
}

std::unique_ptr<Implementation> make_optimized(const ModelConfig& config,
                                               const WeightSource& weights,
                                               const OptimizedOptions& options) {
  load_ops();
  return std::make_unique<Optimized>(config, weights, options);
}

}  // namespace dsv32::optimized
