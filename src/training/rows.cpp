#include <cstring>

#include "src/model/errors.h"
#include "src/training/trainer.h"

namespace dsv32::training {
namespace {

using Values = std::vector<int64_t>;

Values cut(const Values& values, int64_t S, int64_t first, int64_t last) {
  return {values.begin() + first * S, values.begin() + last * S};
}

/// Rows of the first dimension.
HostTensor cut(const HostTensor& tensor, int64_t first, int64_t last) {
  Shape shape = tensor.shape();
  const int64_t row_bytes = tensor.bytes() / shape.at(0);
  shape.at(0) = last - first;
  HostTensor rows(tensor.dtype(), shape);
  std::memcpy(rows.raw(), tensor.raw() + first * row_bytes, static_cast<size_t>(rows.bytes()));
  return rows;
}

HostTensor join(const std::vector<const HostTensor*>& parts) {
  Shape shape = parts.front()->shape();
  shape.at(0) = 0;
  for (const HostTensor* part : parts) shape.at(0) += part->shape().at(0);
  HostTensor whole(parts.front()->dtype(), shape);
  std::byte* to = whole.raw();
  for (const HostTensor* part : parts) {
    std::memcpy(to, part->raw(), static_cast<size_t>(part->bytes()));
    to += part->bytes();
  }
  return whole;
}

void check_range(int64_t first, int64_t last, int64_t rows) {
  if (0 <= first && first < last && last <= rows) return;
  throw Error(ExitCode::usage, {.where = "training",
                                .what = "rows of a batch",
                                .expected = "some of " + std::to_string(rows),
                                .got = std::to_string(first) + " to " + std::to_string(last)});
}

}  // namespace

Batch slice_rows(const Batch& batch, int64_t first, int64_t last) {
  check_range(first, last, batch.B);
  Batch rows = batch;
  rows.B = last - first;
  rows.input_ids = cut(batch.input_ids, batch.S, first, last);
  rows.attention_mask = cut(batch.attention_mask, batch.S, first, last);
  rows.position_ids = cut(batch.position_ids, batch.S, first, last);
  rows.labels = cut(batch.labels, batch.S, first, last);
  return rows;
}

std::pair<int64_t, int64_t> share_of_rows(int64_t rows, int64_t index, int64_t count) {
  return {rows * index / count, rows * (index + 1) / count};
}

Trace slice_decisions(const Trace& decisions, int64_t first, int64_t last) {
  Trace rows;
  for (const std::string& name : decisions.names())
    if (is_decision(name)) rows.put(name, cut(*decisions.find(name), first, last));
  return rows;
}

Trace join_decisions(const std::vector<Trace>& parts) {
  Trace whole;
  if (parts.empty()) return whole;
  for (const std::string& name : parts.front().names()) {
    if (!is_decision(name)) continue;
    std::vector<const HostTensor*> pieces;
    for (const Trace& part : parts) pieces.push_back(part.find(name));
    whole.put(name, join(pieces));
  }
  return whole;
}

}  // namespace dsv32::training
