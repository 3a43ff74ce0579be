#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/model/batch.h"
#include "src/model/tensor.h"
#include "src/model/trace.h"

/// How a tap falls into judged rows. Padded rows are left out; within a row only the keys in force
/// count.
namespace dsv32::harness {

/// One row: `pieces` runs of `length` elements, `stride` apart, from flat element `first` on.
struct Row {
  int64_t number = 0;              // among all rows of the tap, padded ones included
  int64_t b = -1, s = -1, h = -1;  // -1 where the tap has no such axis; s is t for a key tap
  int64_t first = 0;
  int64_t pieces = 1;
  int64_t stride = 0;
  int64_t length = 0;

  /// The same for the rows of a token's heads, which are made of one vector; -1: of no token.
  int64_t token() const { return s < 0 ? -1 : (b << 32) + s; }
};

/// Rows [begin, end) of a layout, none of whose tokens lies in another range.
struct RowRange {
  size_t begin = 0, end = 0;
  int64_t first_token = 0;  // how many tokens lie before it
};

enum class RowView {
  judged,  // TapKind: (b,s), (b,s,h), (b,t), (b,h,s), first index of a gradient
  sketch,  // src/model/sketch.h: (b,s), a gradient as one row
};

class RowLayout {
 public:
  /// `support` [B,S,T]: keys that count for attention and keys taps (nullptr: all visible). `batch`
  /// may be null for gradients.
  RowLayout(const TapName& tap, const Shape& shape, const Batch* batch,
            const std::vector<uint8_t>* support, RowView view);

  const std::vector<Row>& rows() const { return rows_; }
  /// All rows, in ranges of some 2^18 elements. They depend on the layout alone, so that sums over
  /// them are the same for any number of threads.
  std::vector<RowRange> chunks() const;
  /// Tokens whose heads' rows follow each other; else rows.
  int64_t tokens() const;
  const Shape& shape() const { return shape_; }
  /// Values of a row in double; elements that are not judged are 0.
  void gather(const HostTensor& tensor, const Row& row, std::vector<double>& values) const;
  /// Numbers of the rows of RowView::judged that make up a row.
  std::vector<int64_t> judged_rows(const Row& row) const;
  /// Number of judged elements of a row.
  int64_t judged_elements(const Row& row) const;
  /// Flat index in the tap of element `i` of a row.
  int64_t flat_index(const Row& row, int64_t i) const;
  /// Flat index as one index per axis; of a query that it keeps, its position in the sequence.
  std::vector<int64_t> unravel(int64_t flat) const;
  /// 0/1 per key for a row of an attention or scores tap; nullptr when every element counts.
  const uint8_t* keys(const Row& row) const;

 private:
  void add_token_rows(const Batch& batch);
  void add_head_rows(const Batch& batch);
  void add_attention_rows(const Batch& batch, RowView view);
  void add_weight_rows(RowView view);
  void add_single_row();

  Shape shape_;
  TapKind kind_;
  RowView view_;
  std::vector<Row> rows_;
  std::vector<uint8_t> keys_;     // [B,S,T]; empty when every element counts
  std::vector<int64_t> queries_;  // of a tap that keeps few of them; else empty
  int64_t S_ = 0;
  int64_t T_ = 0;
};

/// "b 1, s 12, h 3": a row in words.
std::string describe(const Row& row);

}  // namespace dsv32::harness
