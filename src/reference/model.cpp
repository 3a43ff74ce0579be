#include <malloc.h>

#include "src/bridge/bridge.h"
#include "src/bridge/libtorch.h"
#include "src/model/errors.h"
#include "src/reference/convert.h"
#include "src/reference/layer.h"
#include "src/reference/reference.h"

namespace dsv32::reference {
namespace {

/// One pass of one batch. Layers are the outer loop and chunks the inner one, so that each layer's
/// weights are loaded once; the caches make that the same function as running chunk after chunk.
class Pass {
 public:
  Pass(const ModelConfig& config, const WeightSource& source, const Batch& batch,
       const RunOptions& options)
      : source_(source),
        batch_(batch),
        options_(options),
        ctx_{config,
             options.dialect,
             {options.dtype, options.dialect.rounding},
             torch::Device(options.device),
             options.objective,
             options.summation,
             source.fp8().value_or(config.fp8.value_or(Fp8Config()))},
        flow_(config, batch, options, tap_style(), ctx_.device) {
    ModelConfig without_layers = config;
    without_layers.num_hidden_layers = 0;
    outer_specs_ = weight_specs(without_layers);
    if (!options.segment) split_into_chunks();
  }

  /// Greedy decoding after the prompt, chunk by chunk through caches of all layers; `history` is
  /// the batch of this pass, and grows.
  Trace decode(History& history) {
    torch::NoGradGuard no_grad;
    std::vector<LayerWeights> weights;
    for (int64_t layer = 0; layer < ctx_.config.num_hidden_layers; ++layer)
      weights.push_back(layer_weights(layer, false));
    LayerWeights outer = outer_weights(false);
    std::vector<LayerCache> caches(weights.size());
    for (size_t i = 0; i < ranges_.size(); ++i) {
      const auto [begin, end] = ranges_[i];
      say("token " + std::to_string(i + 1) + " of " + std::to_string(ranges_.size()));
      flow_.begin_chunk(begin, end);
      Residual stream = embedded(outer, begin, end);
      for (size_t layer = 0; layer < weights.size(); ++layer)
        stream = run_layer(ctx_, static_cast<int64_t>(layer), weights[layer], stream, chunks_[i],
                           caches[layer], flow_);
      history.emit(best_tokens(logits_of(stream, outer)));
    }
    Trace trace = flow_.finish();
    trace.put("gen.tokens", history.tokens());
    return trace;
  }

  Trace run() {
    if (options_.segment && options_.backward) return segment_backward(*options_.segment);
    if (options_.segment) {
      torch::NoGradGuard no_grad;
      run_segment(*options_.segment, *options_.stream);
      return flow_.finish();
    }
    {
      torch::NoGradGuard no_grad;
      forward();
    }
    Trace trace = flow_.finish();
    if (options_.backward) backward(trace);
    return trace;
  }

 private:
  Tensor long_tensor(const std::vector<int64_t>& values) const {
    return torch::tensor(values, torch::kInt64).view({batch_.B, batch_.S}).to(ctx_.device);
  }

  /// Key t is visible to query s iff t <= s and mask[t] = 1 (docs/spec.md 1). [B, end-begin, end]
  ChunkInputs inputs_of(const Context& ctx, int64_t begin, int64_t end) const {
    const Tensor query = torch::arange(begin, end, ctx.device).unsqueeze(-1);
    const Tensor key = torch::arange(end, ctx.device).unsqueeze(0);
    const Tensor causal = key <= query + ctx.dialect.selection.mask_shift;
    const Tensor unmasked =
        (long_tensor(batch_.attention_mask).narrow(1, 0, end) != 0).unsqueeze(1);
    Tensor positions = long_tensor(batch_.position_ids).narrow(1, begin, end - begin);
    if (ctx.dialect.rope.positions_per_chunk && begin > 0)
      positions = torch::arange(end - begin, ctx.device).expand_as(positions);
    if (begin > 0) positions = positions + ctx.dialect.rope.offset_after_prompt;
    if (options_.perturbation > 0) {  // an angle is rounded as any other product
      positions = positions.to(ctx.rounding.compute_type());
      // A probe so fine is one of far positions, where the rounding of the angles outweighs all
      // other: each angle gets a sign of its own.
      constexpr double kFine = 1e-6;
      if (options_.perturbation < kFine)
        positions = positions.unsqueeze(-1).repeat({1, 1, ctx.config.qk_rope_head_dim / 2});
      positions = perturbed(positions, options_.perturbation, options_.perturbation_seed,
                            "positions" + std::to_string(begin));
    }
    const Tensor valid = long_tensor(batch_.attention_mask).narrow(1, begin, end - begin) != 0;
    const std::vector<int64_t> shape = {batch_.B, end - begin, end};
    return {rope_table(ctx, positions), causal.unsqueeze(0) & unmasked,
            causal.unsqueeze(0).expand(shape), unmasked.expand(shape), valid};
  }

  TapStyle tap_style() const {
    TapStyle style{.ordinary = ctx_.rounding.compute_type(),
                   .exact = ctx_.rounding.compute_type(),
                   .round = [this](const Tensor& x) { return ctx_.rounding.stored(x); }};
    // bf16 expert outputs times float32 weights, and the scores of the vocabulary.
    if (ctx_.rounding.is_16bit() && !ctx_.rounding.like_transformers())
      style.also_exact = [](const TapName& tap) {
        return tap.info.name == "moe.routed" || tap.info.name == "logits";
      };
    if (options_.perturbation > 0) {
      style.hand_on = [this](const Tensor& x, const std::string& place) {
        const auto move = options_.segment ? perturbed_by_counter : perturbed;
        return move(x, options_.perturbation, options_.perturbation_seed, place);
      };
    }
    return style;
  }

  void split_into_chunks() {
    const std::vector<int64_t> lengths =
        batch_.chunks.empty() ? std::vector<int64_t>{batch_.S} : batch_.chunks;
    int64_t begin = 0;
    for (const int64_t length : lengths) {
      ranges_.emplace_back(begin, begin + length);
      begin += length;
    }
    chunks_ = chunks_of(ctx_);
  }

  std::vector<ChunkInputs> chunks_of(const Context& ctx) const {
    std::vector<ChunkInputs> chunks;
    for (const auto& [first, last] : ranges_) chunks.push_back(inputs_of(ctx, first, last));
    return chunks;
  }

  bool has_own_dialect(int64_t layer) const { return options_.layer_dialects.contains(layer); }

  Context context_of(int64_t layer) const {
    if (!has_own_dialect(layer)) return ctx_;
    const Dialect& dialect = options_.layer_dialects.at(layer);
    return {ctx_.config, dialect, ctx_.rounding, ctx_.device, ctx_.objective, ctx_.sums, ctx_.fp8};
  }

  WeightStyle style(bool requires_grad) const {
    return {ctx_.rounding.compute_type(),
            ctx_.device,
            requires_grad,
            options_.perturbation,
            options_.perturbation_seed,
            options_.segment.has_value(),
            ctx_.rounding.is_16bit() && source_.fp8() && !ctx_.dialect.fp8.linear,
            ctx_.dialect.fp8.linear && options_.perturbation == 0};
  }
  LayerWeights layer_weights(int64_t layer, bool requires_grad) const {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    return {source_, layer_weight_specs(ctx_.config, layer), prefix, style(requires_grad)};
  }
  LayerWeights outer_weights(bool requires_grad) const {
    return {source_, outer_specs_, "", style(requires_grad)};
  }

  void say(const std::string& what) const {
    if (options_.progress) options_.progress(what);
  }
  std::string layer_text(const char* pass, int64_t layer) const {
    return std::string(pass) + " layer " + std::to_string(layer + 1) + "/" +
           std::to_string(ctx_.config.num_hidden_layers);
  }

  // --- forward ----------------------------------------------------------------------------------

  void forward() {
    std::vector<Residual> stream = embed();
    for (int64_t layer = 0; layer < ctx_.config.num_hidden_layers; ++layer) {
      say(layer_text("forward", layer));
      if (options_.backward) layer_inputs_.push_back(input_of(stream));
      LayerWeights weights = layer_weights(layer, false);
      LayerCache cache;
      const Context ctx = context_of(layer);
      const std::vector<ChunkInputs> chunks = has_own_dialect(layer) ? chunks_of(ctx) : chunks_;
      for (size_t i = 0; i < ranges_.size(); ++i) {
        flow_.begin_chunk(ranges_[i].first, ranges_[i].second);
        stream[i] = run_layer(ctx, layer, weights, stream[i], chunks[i], cache, flow_);
      }
      flow_.begin_chunk(0, batch_.S);
      if (trains_indexer())
        kl_losses_.push_back(flow_.put(layer_tap(layer, "loss.kl"), layer_kl(cache)));
    }
    if (options_.backward) layer_inputs_.push_back(input_of(stream));
    head(stream);
  }

  std::vector<Residual> embed() {
    LayerWeights weights = outer_weights(false);
    std::vector<Residual> stream;
    for (const auto& [begin, end] : ranges_) {
      flow_.begin_chunk(begin, end);
      stream.push_back(embedded(weights, begin, end));
    }
    return stream;
  }

  Residual embedded(LayerWeights& weights, int64_t begin, int64_t end) {
    const Tensor ids = long_tensor(batch_.input_ids).narrow(1, begin, end - begin);
    const Tensor own = torch::embedding(weights.get("model.embed_tokens.weight"), ids);
    const Residual start{own, flow_.put("embed", own)};
    return ctx_.dialect.residual.embed_scaled ? scaled(start) : start;
  }

  /// Times sqrt(hidden_size), as models with tied embeddings do.
  Residual scaled(const Residual& start) const {
    const double factor = embed_factor();
    return {start.sum * factor, ctx_.rounding.stored(start.hidden * factor)};
  }
  double embed_factor() const { return std::sqrt(static_cast<double>(ctx_.config.hidden_size)); }

  void head(const std::vector<Residual>& stream) {
    LayerWeights weights = outer_weights(false);
    std::vector<Tensor> logits;
    for (size_t i = 0; i < ranges_.size(); ++i) {
      flow_.begin_chunk(ranges_[i].first, ranges_[i].second);
      logits.push_back(logits_of(stream[i], weights));
    }
    flow_.begin_chunk(0, batch_.S);
    flow_.put("loss.lm", lm_loss(ctx_, torch::cat(logits, 1), long_tensor(batch_.labels)));
    if (trains_indexer()) flow_.put("loss.kl", torch::stack(kl_losses_).sum() / layers_in_mean());
  }

  // --- one segment
  // -------------------------------------------------------------------------------

  Tensor stored_part(const StreamState& stream, const std::string& name) const {
    return to_torch(stream.at(name)).to(ctx_.device, ctx_.rounding.compute_type());
  }

  /// The stream of an implementation of another kind, or of no run yet, holds `hidden` alone.
  Residual residual_of(const StreamState& stream) const {
    const Tensor hidden = stored_part(stream, "hidden");
    return {stream.contains("sum") ? stored_part(stream, "sum") : hidden, hidden};
  }

  void leave(const Residual& residual, StreamState& stream) const {
    const DType dtype = dtype_of(ctx_.rounding.compute_type());
    stream = {{"hidden", to_host(residual.hidden, dtype, options_.room)}};
    if (ctx_.rounding.is_16bit()) stream["sum"] = to_host(residual.sum, dtype, options_.room);
  }

  void run_segment(const Segment& segment, StreamState& stream) {
    flow_.begin_chunk(0, batch_.S);
    if (segment.kind == SegmentKind::embed) return leave(embed_rows(), stream);
    const Residual in = residual_of(stream);
    if (segment.kind == SegmentKind::head) return head_in_blocks(in);
    const Context ctx = context_of(segment.layer);
    const ChunkInputs chunk = inputs_of(ctx, 0, batch_.S);
    LayerWeights weights = layer_weights(segment.layer, false);
    LayerCache cache;
    const auto half = segment.kind == SegmentKind::attention ? run_attention_half : run_mlp_half;
    leave(half(ctx, segment.layer, weights, in, chunk, cache, flow_), stream);
  }

  /// Only the rows of the table that the batch needs are read.
  Residual embed_rows() {
    LayerWeights weights = outer_weights(false);
    const Tensor rows = weights.get_rows("model.embed_tokens.weight", batch_.input_ids);
    const Tensor own = rows.view({batch_.B, batch_.S, -1});
    return {own, flow_.put("embed", own)};
  }

  /// The logits block by block of the vocabulary, so that no more of the head is held.
  void head_in_blocks(const Residual& residual) {
    LayerWeights weights = outer_weights(false);
    const Tensor normed = final_norm(residual, weights);
    const std::vector<int64_t> rows = kept_logit_rows(ctx_.config, batch_.B, batch_.S);
    const bool whole = static_cast<int64_t>(rows.size()) == batch_.S;
    const Tensor kept = torch::tensor(rows, torch::kInt64).to(ctx_.device);
    BlockedLoss loss(ctx_, long_tensor(batch_.labels));
    std::vector<Tensor> blocks;
    for (int64_t first = 0; first < ctx_.config.vocab_size; first += kVocabularyBlock) {
      say("vocabulary from " + std::to_string(first));
      const int64_t last = std::min(first + kVocabularyBlock, ctx_.config.vocab_size);
      const Tensor scores = ctx_.rounding.cast(
          unrounded_linear(ctx_, normed, weights.get_range("lm_head.weight", first, last)));
      blocks.push_back(whole ? scores : scores.index_select(1, kept));
      if (!whole) loss.add(scores, first);
    }
    if (!whole) {
      flow_.put_kept("logits", torch::cat(blocks, -1));
      flow_.put("loss.lm", loss.loss());
      return;
    }
    const Tensor logits = flow_.put("logits", torch::cat(blocks, -1));
    flow_.put("loss.lm", lm_loss(ctx_, logits, long_tensor(batch_.labels)));
  }

  // --- the indexer's KL
  // ---------------------------------------------------------------------------

  bool trains_indexer() const { return ctx_.objective.kl != KlStage::none; }

  /// Mean over the valid query rows.
  Tensor layer_kl(const LayerCache& cache) const {
    if (ctx_.dialect.kl.sum_over_rows) return cache.kl_sum;
    int64_t rows = 0;
    for (const int64_t bit : batch_.attention_mask) rows += ctx_.dialect.kl.mean_over_all ? 1 : bit;
    return cache.kl_sum / std::max<int64_t>(rows, 1);
  }

  /// The model's loss is the mean over the layers.
  double layers_in_mean() const {
    return ctx_.dialect.kl.sum_over_layers ? 1.0
                                           : static_cast<double>(ctx_.config.num_hidden_layers);
  }

  Tensor final_norm(const Residual& residual, LayerWeights& weights) {
    const double eps =
        ctx_.dialect.norm.eps_final > 0 ? ctx_.dialect.norm.eps_final : ctx_.config.rms_norm_eps;
    const bool unrounded = ctx_.rounding.is_16bit() && !ctx_.rounding.like_transformers();
    const Tensor input = unrounded ? residual.sum : residual.hidden;
    return flow_.put("final_norm", rms_norm(ctx_, input, weights.get("model.norm.weight"), eps));
  }

  Tensor logits_of(const Residual& residual, LayerWeights& weights) {
    const Tensor normed = final_norm(residual, weights);
    const Tensor scores = unrounded_linear(ctx_, normed, weights.get("lm_head.weight"));
    return flow_.put("logits", ctx_.rounding.cast(scores));
  }

  // --- backward ---------------------------------------------------------------------------------
  // Layer by layer from the head: each layer is run again from its stored input with a graph of its
  // own, so that one layer's weights and activations are all that must fit. The decisions of the
  // forward pass are replayed.

  /// What the graph of the next layer starts from: in a staged one what the stage reads.
  Tensor input_of(const std::vector<Residual>& stream) const {
    const bool fed = options_.slopes && options_.feeding == Feeding::staged;
    std::vector<Tensor> parts;
    for (const Residual& part : stream)
      parts.push_back(fed && !ctx_.rounding.is_16bit() ? part.hidden : part.sum);
    return torch::cat(parts, 1);
  }

  /// With what the staged ops in between hand back, where they have gradients of their own.
  void propagate(std::vector<Tensor> roots, std::vector<Tensor> factors) {
    TapFlow::Cuts cuts = flow_.take_cuts();
    roots.insert(roots.end(), cuts.roots.begin(), cuts.roots.end());
    factors.insert(factors.end(), cuts.factors.begin(), cuts.factors.end());
    if (!roots.empty()) torch::autograd::backward(roots, factors);
    flow_.keep_slopes();
  }

  Residual leaf(const Tensor& sum) const {
    const Tensor value = sum.detach().clone().requires_grad_(true);
    return {value, ctx_.rounding.stored(value)};
  }

  void backward(Trace& trace) {
    torch::AutoGradMode grad(true);  // whatever the caller has
    flow_.replay();
    flow_.begin_chunk(0, batch_.S);
    Trace gradients;
    const Residual last = leaf(layer_inputs_.back());
    layer_inputs_.pop_back();
    Tensor upstream;  // stays undefined without an LM loss: only the indexer has gradients then
    if (ctx_.objective.lm) upstream = head_backward(last, gradients);
    for (int64_t layer = ctx_.config.num_hidden_layers; layer-- > 0;) {
      say(layer_text("backward", layer));
      upstream = flow_.upstream(layer_tap(layer, "hidden"), upstream);
      upstream = layer_backward(layer, upstream, gradients);
    }
    if (upstream.defined()) embedding_gradient(upstream, gradients);
    trace.slopes = flow_.take_slopes();
    for (const std::string& name : gradient_taps(ctx_.config, ctx_.objective))
      move_gradient(name, gradients, trace);
    const std::vector<std::string> others = gradients.names();
    for (const std::string& name : others) move_gradient(name, gradients, trace);  // a finding each
    trace.distances.merge(gradients.distances);
  }

  static void move_gradient(const std::string& name, Trace& from, Trace& to) {
    const HostTensor* found = from.find(name);
    if (found == nullptr) return;
    to.put(name, *found);
    from.erase(name);
  }

  Tensor head_backward(const Residual& input, Trace& gradients) {
    LayerWeights weights = outer_weights(true);
    const Tensor loss = lm_loss(ctx_, logits_of(input, weights), long_tensor(batch_.labels));
    propagate({loss}, {torch::ones_like(loss)});
    for (const char* name : {"lm_head.weight", "model.norm.weight"})
      keep_gradient(weights, name, gradients);
    return input.sum.grad();
  }

  Tensor layer_backward(int64_t layer, const Tensor& upstream, Trace& gradients) {
    const Context ctx = context_of(layer);
    const ChunkInputs whole = inputs_of(ctx, 0, batch_.S);
    LayerWeights weights = layer_weights(layer, true);
    const Residual input = leaf(layer_inputs_.back());
    layer_inputs_.pop_back();
    LayerCache cache;
    std::vector<Tensor> roots, factors;
    if (upstream.defined()) {
      roots.push_back(run_layer(ctx, layer, weights, input, whole, cache, flow_).sum);
      factors.push_back(upstream);
    } else {
      run_attention(ctx, layer, weights, input, whole, cache, flow_);
    }
    if (trains_indexer()) {
      roots.push_back(layer_kl(cache));
      factors.push_back(
          torch::full_like(roots.back(), ctx_.objective.kl_weight / layers_in_mean()));
    }
    propagate(roots, factors);
    for (const WeightSpec& spec : weights.specs()) keep_gradient(weights, spec.name, gradients);
    return input.sum.grad();
  }

  // --- the backward pass of one segment
  // ---------------------------------------------------------

  Trace segment_backward(const Segment& segment) {
    torch::AutoGradMode grad(true);
    StreamState& gradient = *options_.gradient;
    flow_.begin_chunk(0, batch_.S);
    flow_.replay_feed();
    const Context ctx = context_of(segment.layer);
    LayerWeights weights = layer_weights(segment.layer, true);
    const Residual in = leaf(residual_of(*options_.stream).sum);
    const Tensor upstream = stored_part(gradient, "hidden");
    Trace trace;
    const Finished finished = [&](const std::vector<std::string>& names) {
      for (const std::string& name : names) {
        const std::string full = weights.prefix() + name;
        keep_gradient(weights, full, trace);
        weights.release(full);
      }
    };
    if (segment.kind == SegmentKind::attention) {
      const ChunkInputs chunk = inputs_of(ctx, 0, batch_.S);
      attention_half_backward(ctx, segment.layer, weights, in, chunk, upstream, flow_, finished);
    } else {
      ExpertGradients sums;
      if (!ctx.config.is_dense_mlp(segment.layer)) sums = sums_of_experts(gradient);
      if (options_.experts) {
        experts_backward(ctx, segment.layer, weights, in, *options_.experts, upstream, flow_,
                         finished, sums);
        leave_sums(sums, gradient);
        return trace;
      }
      mlp_half_backward(ctx, segment.layer, weights, in, upstream, sums, flow_, finished);
    }
    const DType dtype = dtype_of(ctx_.rounding.compute_type());
    gradient = {{"hidden", to_host(in.sum.grad(), dtype, options_.room)}};
    return trace;
  }

  /// What the experts before have handed back; zeros before the first. On the host they are the
  /// gradient's own memory.
  ExpertGradients sums_of_experts(StreamState& gradient) const {
    const DType dtype = dtype_of(ctx_.rounding.compute_type());
    const int64_t rows = batch_.B * batch_.S;
    const auto sum = [&](const char* part, int64_t width) {
      if (!gradient.contains(part)) {
        const Shape shape = {rows, width};
        gradient[part] = options_.room ? options_.room(dtype, shape) : HostTensor(dtype, shape);
      }
      return stored_part(gradient, part);
    };
    return {sum("dy", ctx_.config.hidden_size), sum("dweights", ctx_.config.num_experts_per_tok)};
  }

  void leave_sums(const ExpertGradients& sums, StreamState& gradient) const {
    if (ctx_.device.is_cpu()) return;
    const DType dtype = dtype_of(ctx_.rounding.compute_type());
    gradient["dy"] = to_host(sums.dy, dtype, options_.room);
    gradient["dweights"] = to_host(sums.dweights, dtype, options_.room);
  }

  void embedding_gradient(const Tensor& upstream, Trace& gradients) {
    LayerWeights weights = outer_weights(true);
    const Tensor rows =
        torch::embedding(weights.get("model.embed_tokens.weight"), long_tensor(batch_.input_ids));
    const bool scaled_up = ctx_.dialect.residual.embed_scaled;
    rows.backward(flow_.upstream("embed", scaled_up ? upstream * embed_factor() : upstream));
    keep_gradient(weights, "model.embed_tokens.weight", gradients);
  }

  /// Under LM an expert without tokens has an exactly zero gradient. Whatever the objective does
  /// not train has none, and buffers never (docs/spec.md 2).
  void keep_gradient(const LayerWeights& weights, const std::string& name, Trace& gradients) const {
    const std::string tap = "grad." + name;
    if (is_buffer(name) || (options_.wanted && !options_.wanted(tap))) return;
    const Tensor gradient = weights.gradient(name);
    if (gradient.defined()) {
      if (measured(options_, tap, seen_by_host(gradient, options_.dtype), gradients)) return;
      gradients.put(tap, to_host(gradient, options_.dtype, options_.room));
    } else if (ctx_.objective.lm && !is_indexer(name)) {
      const HostTensor zeros(options_.dtype, shape_of(weights, name));
      keep_or_measure(options_, tap, zeros, gradients);
    }
  }

  static Shape shape_of(const LayerWeights& weights, const std::string& name) {
    for (const WeightSpec& spec : weights.specs()) {
      if (spec.name == name) return spec.shape;
    }
    throw Error(ExitCode::internal,
                {.where = "reference", .what = "weight", .expected = "a known name", .got = name});
  }

  const WeightSource& source_;
  const Batch& batch_;
  const RunOptions& options_;
  Context ctx_;
  TapFlow flow_;
  std::vector<WeightSpec> outer_specs_;
  std::vector<std::pair<int64_t, int64_t>> ranges_;
  std::vector<ChunkInputs> chunks_;
  std::vector<Tensor> layer_inputs_;
  std::vector<Tensor> kl_losses_;  // of every layer
};

class Reference : public Implementation {
 public:
  Reference(const ModelConfig& config, const WeightSource& weights)
      : config_(config), weights_(weights) {}

  Trace run(const Batch& batch, const RunOptions& options) const override {
    validate(batch, config_, "reference");
    if (options.decoding) {
      History history(batch, *options.decoding);
      const Batch& grown = history.in_steps();
      return Pass(config_, weights_, grown, options).decode(history);
    }
    return Pass(config_, weights_, batch, options).run();
  }
  std::string name() const override { return "reference"; }

 private:
  ModelConfig config_;
  const WeightSource& weights_;
};

}  // namespace

/// Large tensors come and go all the time: keep freed memory instead of asking the kernel for
/// zeroed pages anew.
static void keep_freed_memory() {
  constexpr int kNever = 1 << 30;
  mallopt(M_MMAP_THRESHOLD, kNever);
  mallopt(M_TRIM_THRESHOLD, kNever);
}

std::unique_ptr<Implementation> make_reference(const ModelConfig& config,
                                               const WeightSource& weights) {
  keep_freed_memory();
  return std::make_unique<Reference>(config, weights);
}

}  // namespace dsv32::reference
