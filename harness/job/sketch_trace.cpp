#include "harness/job/run_job.h"
#include "src/model/batch.h"
#include "src/model/sketch.h"

namespace dsv32::harness {
namespace {

/// The index of the first dimension that is kept of a gradient: of the embedding that of a token
/// which predicts a counted label.
int64_t gradient_row(const std::string& name, const Shape& shape, const Batch& batch) {
  if (name != "grad.model.embed_tokens.weight") return shape.at(0) / 2;
  return batch.input_ids.at(static_cast<size_t>(batch.S - 2));
}

/// attn.logits with 0 where a key is not attended: there they are free.
HostTensor attended(const HostTensor& logits, const HostTensor& probs) {
  HostTensor out = logits.cast(DType::float32);
  const auto values = out.data<float>();
  for (int64_t i = 0; i < probs.numel(); ++i)
    if (probs.at(i) == 0) values[static_cast<size_t>(i)] = 0;
  return out;
}

HostTensor as_sketched(const Trace& trace, const TapName& tap) {
  const HostTensor& value = *trace.find(tap.full);
  if (tap.info.name != "attn.logits") return value;
  const HostTensor* probs = trace.find(layer_tap(*tap.layer, "attn.probs"));
  return probs == nullptr ? value : attended(value, *probs);
}

}  // namespace

Trace sketched(const Trace& trace, const Case& c) {
  const Batch batch = make_batch(c);
  const std::vector<int64_t> rows = chosen_rows(c.B, c.S, c.config.index_topk);
  Trace out;
  out.metadata = trace.metadata;
  out.metadata["sketch"] = "1";
  for (const std::string& name : trace.names()) {
    const HostTensor& value = *trace.find(name);
    if (!parse_tap(name)) {  // updates of single steps
      out.put(name, value);
      continue;
    }
    const TapName tap = *parse_tap(name);
    const TapKind kind = tap.info.kind;
    if (tap.info.is_decision() || kind == TapKind::scalar || kind == TapKind::series) {
      out.put(name, value);
    } else if (kind == TapKind::gradient) {
      out.sketches[name] = sketch_tap(tap, value, {gradient_row(name, value.shape(), batch)});
    } else {
      out.sketches[name] = sketch_tap(tap, as_sketched(trace, tap), rows);
    }
  }
  return out;
}

}  // namespace dsv32::harness
