#include "harness/judge/measure/rows.h"

#include <algorithm>

#include "harness/judge/decisions/keys.h"
#include "src/model/segment.h"

namespace dsv32::harness {
namespace {

template <typename T>
void widen(const HostTensor& tensor, int64_t first, int64_t count, double* out) {
  const std::span<const T> data = tensor.data<T>().subspan(first, count);
  std::copy(data.begin(), data.end(), out);
}

// `count` consecutive elements from `first` on.
void read_run(const HostTensor& tensor, int64_t first, int64_t count, double* out) {
  switch (tensor.dtype()) {
    case DType::float64:
      return widen<double>(tensor, first, count, out);
    case DType::float32:
      return widen<float>(tensor, first, count, out);
    case DType::bfloat16: {
      const auto data = tensor.data<uint16_t>().subspan(first, count);
      std::transform(data.begin(), data.end(), out,
                     [](uint16_t x) { return bfloat16_to_float(x); });
      return;
    }
    default:
      for (int64_t i = 0; i < count; ++i) out[i] = tensor.at(first + i);
  }
}

}  // namespace

RowLayout::RowLayout(const TapName& tap, const Shape& shape, const Batch* batch,
                     const std::vector<uint8_t>* support, RowView view)
    : shape_(shape), kind_(tap.info.kind), view_(view) {
  const TapKind kind = kind_;
  const bool over_support = kind == TapKind::attention || kind == TapKind::keys;
  if (over_support || kind == TapKind::scores) {
    S_ = batch->S;
    T_ = shape.back();
    keys_ = support != nullptr ? *support : visible_keys(*batch);
  }
  if (kind == TapKind::scalar || kind == TapKind::series) {
    add_single_row();
  } else if (kind == TapKind::gradient) {
    add_weight_rows(view);
  } else if (kind == TapKind::attention) {
    add_attention_rows(*batch, view);
  } else if (shape.size() == 4 && view == RowView::judged) {
    add_head_rows(*batch);
  } else {
    add_token_rows(*batch);
  }
}

// A tap that keeps few of the tokens holds those of spread_queries.
void RowLayout::add_token_rows(const Batch& batch) {
  const int64_t kept = shape_[1], length = dsv32::numel(shape_) / (batch.B * kept);
  const std::vector<int64_t> tokens = spread_queries(kept, batch.S);
  if (kept < batch.S) queries_ = tokens;
  for (int64_t b = 0; b < batch.B; ++b)
    for (int64_t i = 0; i < kept; ++i) {
      const int64_t s = tokens[i];
      if (!batch.valid(b, s)) continue;
      rows_.push_back({.number = b * batch.S + s,
                       .b = b,
                       .s = s,
                       .first = (b * kept + i) * length,
                       .length = length});
    }
}

void RowLayout::add_head_rows(const Batch& batch) {
  const int64_t heads = shape_[2], length = shape_[3];
  for (int64_t b = 0; b < batch.B; ++b)
    for (int64_t s = 0; s < batch.S; ++s)
      for (int64_t h = 0; h < heads && batch.valid(b, s); ++h) {
        const int64_t number = (b * batch.S + s) * heads + h;
        rows_.push_back(
            {.number = number, .b = b, .s = s, .h = h, .first = number * length, .length = length});
      }
}

// A tap that keeps few of the queries holds those of spread_queries.
void RowLayout::add_attention_rows(const Batch& batch, RowView view) {
  const int64_t heads = shape_[1], kept = shape_[2];
  if (kept < batch.S) queries_ = spread_queries(kept, batch.S);
  const bool whole = view == RowView::sketch;
  for (int64_t b = 0; b < batch.B; ++b)
    for (int64_t h = 0; h < (whole ? 1 : heads); ++h)
      for (int64_t i = 0; i < kept; ++i) {
        const int64_t s = queries_.empty() ? i : queries_[i];
        if (!batch.valid(b, s)) continue;
        const int64_t number = whole ? b * batch.S + s : (b * heads + h) * batch.S + s;
        rows_.push_back({.number = number,
                         .b = b,
                         .s = s,
                         .h = whole ? -1 : h,
                         .first = ((b * heads + h) * kept + i) * T_,
                         .pieces = whole ? heads : 1,
                         .stride = kept * T_,
                         .length = T_});
      }
}

void RowLayout::add_weight_rows(RowView view) {
  if (view == RowView::sketch || shape_.size() < 2) return add_single_row();
  const int64_t count = shape_[0];
  const int64_t length = dsv32::numel(shape_) / std::max<int64_t>(count, 1);
  for (int64_t i = 0; i < count; ++i)
    rows_.push_back({.number = i, .first = i * length, .length = length});
}

void RowLayout::add_single_row() { rows_.push_back({.length = dsv32::numel(shape_)}); }

const uint8_t* RowLayout::keys(const Row& row) const {
  return keys_.empty() ? nullptr : keys_.data() + (row.b * S_ + row.s) * T_;
}

void RowLayout::gather(const HostTensor& tensor, const Row& row,
                       std::vector<double>& values) const {
  values.resize(row.pieces * row.length);
  for (int64_t piece = 0; piece < row.pieces; ++piece)
    read_run(tensor, row.first + piece * row.stride, row.length, &values[piece * row.length]);
  const uint8_t* counts = keys(row);
  if (counts == nullptr) return;
  for (size_t first = 0; first < values.size(); first += static_cast<size_t>(T_))
    for (int64_t t = 0; t < T_; ++t) values[first + t] = counts[t] != 0 ? values[first + t] : 0;
}

std::vector<RowRange> RowLayout::chunks() const {
  constexpr int64_t kElements = 1 << 18;
  std::vector<RowRange> chunks;
  int64_t elements = kElements, tokens = 0, token = -1;
  for (size_t i = 0; i < rows_.size(); ++i) {
    const bool another_head = rows_[i].token() >= 0 && rows_[i].token() == token;
    token = rows_[i].token();
    if (elements >= kElements && !another_head) {
      chunks.push_back({.begin = i, .first_token = tokens});
      elements = 0;
    }
    tokens += another_head ? 0 : 1;
    chunks.back().end = i + 1;
    elements += rows_[i].pieces * rows_[i].length;
  }
  return chunks;
}

int64_t RowLayout::tokens() const {
  int64_t count = 0, token = -1;
  for (const Row& row : rows_) {
    if (row.token() < 0 || row.token() != token) ++count;
    token = row.token();
  }
  return count;
}

std::vector<int64_t> RowLayout::judged_rows(const Row& row) const {
  if (view_ == RowView::judged) return {row.number};
  std::vector<int64_t> numbers;
  if (kind_ == TapKind::gradient) {
    const int64_t count = shape_.size() < 2 ? 1 : shape_[0];
    for (int64_t i = 0; i < count; ++i) numbers.push_back(i);
  } else if (kind_ == TapKind::attention) {
    const int64_t heads = shape_[1];
    for (int64_t h = 0; h < heads; ++h) numbers.push_back((row.b * heads + h) * S_ + row.s);
  } else if (shape_.size() == 4) {
    for (int64_t h = 0; h < shape_[2]; ++h) numbers.push_back(row.number * shape_[2] + h);
  } else {
    numbers = {row.number};
  }
  return numbers;
}

int64_t RowLayout::judged_elements(const Row& row) const {
  const uint8_t* counts = keys(row);
  if (counts == nullptr) return row.pieces * row.length;
  return row.pieces * std::count(counts, counts + T_, 1);
}

int64_t RowLayout::flat_index(const Row& row, int64_t i) const {
  return row.first + i / row.length * row.stride + i % row.length;
}

std::vector<int64_t> RowLayout::unravel(int64_t flat) const {
  std::vector<int64_t> index(shape_.size());
  for (size_t axis = shape_.size(); axis-- > 0;) {
    index[axis] = flat % shape_[axis];
    flat /= shape_[axis];
  }
  const size_t axis = shape_.size() == 4 ? 2 : 1;  // [B,H,n,T] or [B,n,vocab]
  if (!queries_.empty()) index[axis] = queries_[index[axis]];
  return index;
}

std::string describe(const Row& row) {
  if (row.b < 0) return "row " + std::to_string(row.number);
  std::string text = "b " + std::to_string(row.b) + ", s " + std::to_string(row.s);
  if (row.h >= 0) text += ", h " + std::to_string(row.h);
  return text;
}

}  // namespace dsv32::harness
