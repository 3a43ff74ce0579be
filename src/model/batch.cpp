#include "src/model/batch.h"

#include <algorithm>
#include <numeric>

#include "src/model/errors.h"
#include "src/model/philox.h"

namespace dsv32 {

namespace {

std::string place(const Batch& batch, size_t i) {
  const auto index = static_cast<int64_t>(i);
  return "[" + std::to_string(index / batch.S) + "," + std::to_string(index % batch.S) + "]";
}

void check_count(const Batch& batch, const std::string& where, const std::string& field,
                 size_t count) {
  if (static_cast<int64_t>(count) == batch.B * batch.S) return;
  throw Error(ExitCode::artefact,
              {.where = where,
               .what = field + ": number of values",
               .expected = std::to_string(batch.B * batch.S),
               .got = std::to_string(count),
               .context = "B " + std::to_string(batch.B) + ", S " + std::to_string(batch.S)});
}

[[noreturn]] void refuse_value(const Batch& batch, const std::string& where,
                               const std::string& field, size_t i, const std::string& expected,
                               int64_t got) {
  throw Error(ExitCode::artefact, {.where = where,
                                   .what = field + place(batch, i),
                                   .expected = expected,
                                   .got = std::to_string(got)});
}

void check_chunks(const Batch& batch, const std::string& where) {
  if (batch.chunks.empty()) return;
  const bool positive = std::all_of(batch.chunks.begin(), batch.chunks.end(),
                                    [](int64_t length) { return length > 0; });
  const int64_t sum = std::accumulate(batch.chunks.begin(), batch.chunks.end(), int64_t{0});
  if (positive && sum == batch.S) return;
  throw Error(ExitCode::artefact,
              {.where = where,
               .what = "chunks",
               .expected = "positive lengths that sum to " + std::to_string(batch.S),
               .got = to_string(batch.chunks)});
}

}  // namespace

Batch make_batch(const Case& c, int64_t index) {
  Batch batch;
  batch.B = c.B;
  batch.S = c.S;
  batch.chunks = c.chunks;
  batch.mask_given = c.mask_given;
  const PhiloxStream stream(c.seed, "batch." + std::to_string(index) + ".input_ids");
  const auto count = static_cast<size_t>(c.B * c.S);
  const auto vocab = static_cast<uint64_t>(c.config.vocab_size);
  batch.input_ids.resize(count);
  for (size_t i = 0; i < count; ++i) {
    batch.input_ids[i] = static_cast<int64_t>((stream.lane32(i) * vocab) >> 32);
  }
  batch.attention_mask.assign(count, 1);
  const auto padding = batch.attention_mask.end() - (c.pad_side == PadSide::left ? c.S : c.pad);
  std::fill(padding, padding + c.pad, 0);
  set_positions(batch, c.position_offset);
  set_labels(batch);
  return batch;
}

void set_positions(Batch& batch, int64_t offset) {
  batch.position_ids.assign(batch.attention_mask.size(), 0);
  for (int64_t b = 0; b < batch.B; ++b) {
    int64_t seen = 0;
    for (int64_t i = b * batch.S; i < (b + 1) * batch.S; ++i) {
      seen += batch.attention_mask[i];
      batch.position_ids[i] = std::max<int64_t>(seen - 1, 0) + offset;
    }
  }
}

void set_labels(Batch& batch) {
  batch.labels = batch.input_ids;
  for (int64_t b = 0; b < batch.B; ++b) {
    for (int64_t s = 0; s < batch.S; ++s) {
      const bool after_padding = s > 0 && !batch.valid(b, s - 1);
      if (!batch.valid(b, s) || after_padding || s < batch.S / 4) {
        batch.labels[b * batch.S + s] = kIgnoredLabel;
      }
    }
  }
}

bool counts_labels(const Batch& batch) {
  for (int64_t b = 0; b < batch.B; ++b)
    for (int64_t s = 1; s < batch.S; ++s)
      if (batch.labels[b * batch.S + s] != kIgnoredLabel) return true;
  return false;
}

void validate(const Batch& batch, const ModelConfig& config, const std::string& where) {
  if (batch.B <= 0 || batch.S <= 0) {
    throw Error(ExitCode::artefact, {.where = where,
                                     .what = "batch",
                                     .expected = "at least one row and one token",
                                     .got = to_string(Shape{batch.B, batch.S})});
  }
  check_count(batch, where, "input_ids", batch.input_ids.size());
  check_count(batch, where, "attention_mask", batch.attention_mask.size());
  check_count(batch, where, "position_ids", batch.position_ids.size());
  check_count(batch, where, "labels", batch.labels.size());
  check_chunks(batch, where);
  const auto in_vocabulary = [&config](int64_t id) { return id >= 0 && id < config.vocab_size; };
  const std::string ids = "0.." + std::to_string(config.vocab_size - 1);
  for (size_t i = 0; i < batch.input_ids.size(); ++i) {
    const int64_t id = batch.input_ids[i];
    const int64_t mask = batch.attention_mask[i];
    const int64_t label = batch.labels[i];
    if (!in_vocabulary(id)) refuse_value(batch, where, "input_ids", i, ids, id);
    if (mask != 0 && mask != 1) refuse_value(batch, where, "attention_mask", i, "0 or 1", mask);
    if (label != kIgnoredLabel && !in_vocabulary(label)) {
      refuse_value(batch, where, "labels", i, ids + " or -100", label);
    }
  }
}

}  // namespace dsv32
