#include "harness/judge/picture.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "harness/judge/limits.h"

namespace dsv32::harness {
namespace {

constexpr int64_t kMostRows = 64, kMostColumns = 64;  // cells of a picture
constexpr char kNothing = '.', kWorst = '9', kBoth = '0', kOraclesAlone = '4';

int64_t cell_of(int64_t index, int64_t count, int64_t cells) { return index * cells / count; }

/// What the row limit allows the L2 error of a row to be.
double allowance(const Comparison& c, const TapError& error, const RowError& row) {
  const TapLimits& limits = limits_for(c.tap, c.mode, c.dtype);
  const double allowed =
      error.has_reference ? error.denominator(row) * limits.row_ratio
                          : error.sensitivity(row) * limits_for(c.tap, c.cap_mode(), c.dtype).cap;
  return allowed * error.allowance(row);
}

double share(double error, double allowed) {
  if (allowed > 0 || std::isnan(error)) return error / allowed;
  return error > 0 ? INFINITY : 0;
}

bool by_heads(const RowLayout& layout) { return layout.rows().front().h >= 0; }
bool by_tokens(const RowLayout& layout) { return layout.rows().front().b >= 0; }

std::string columns_of(const Comparison& c, const RowLayout& layout) {
  if (by_heads(layout) || c.tap.info.name == "ix.weights") return "heads";
  const TapKind kind = c.tap.info.kind;
  if (kind == TapKind::scores || kind == TapKind::keys) return "keys";
  return c.tap.info.name.starts_with("router.") ? "experts" : "lanes";
}

void paint_heads(const Comparison& c, const RowLayout& layout, const TapError& error,
                 Painter& painter) {
  for (size_t r = 0; r < layout.rows().size(); ++r) {
    const Row& row = layout.rows()[r];
    const RowError& e = error.rows[r];
    painter.add(row.b * c.batch->S + row.s, row.h, share(e.judged, allowance(c, error, e)));
  }
}

void paint_lanes(const Comparison& c, const RowLayout& layout, const TapError& error,
                 Painter& painter) {
  std::vector<double> o, k;
  for (size_t r = 0; r < layout.rows().size(); ++r) {
    const Row& row = layout.rows()[r];
    layout.gather(*c.yardstick.oracle, row, o);
    layout.gather(*c.judged, row, k);
    const auto elements = static_cast<double>(std::max<int64_t>(error.rows[r].elements, 1));
    const double allowed = allowance(c, error, error.rows[r]) / std::sqrt(elements);
    const uint8_t* counts = layout.keys(row);
    for (size_t i = 0; i < o.size(); ++i) {
      if (counts != nullptr && counts[i % row.length] == 0) continue;
      const double gap = k[i] == o[i] ? 0 : std::fabs(k[i] - o[i]);
      painter.add(row.number, static_cast<int64_t>(i), share(gap, allowed));
    }
  }
}

}  // namespace

Painter::Painter(int64_t rows, int64_t columns)
    : rows_(rows),
      columns_(columns),
      cells_(std::min(rows, kMostRows), std::string(std::min(columns, kMostColumns), kNothing)) {}

void Painter::add(int64_t row, int64_t column, double value) {
  add_digit(row, column, static_cast<char>('0' + shade_of(value)));
}

void Painter::add_digit(int64_t row, int64_t column, char digit) {
  std::string& line = cells_[cell_of(row, rows_, std::ssize(cells_))];
  char& cell = line[cell_of(column, columns_, std::ssize(line))];
  cell = std::max(cell, digit);  // '.' is below every digit
}

Picture picture_of_error(const Comparison& c, const RowLayout& layout, const TapError& error) {
  const bool heads = by_heads(layout), tokens = by_tokens(layout);
  const Shape& shape = layout.shape();
  Picture picture{.rows = tokens ? "tokens" : "rows", .columns = columns_of(c, layout)};
  picture.row_count = tokens ? c.batch->B * c.batch->S : layout.rows().back().number + 1;
  const int64_t head_axis = c.tap.info.kind == TapKind::attention ? 1 : 2;
  picture.column_count = heads ? shape[head_axis] : layout.rows().front().length;
  picture.batch = tokens ? c.batch->S : 0;
  Painter painter(picture.row_count, std::max<int64_t>(picture.column_count, 1));
  if (heads) {
    paint_heads(c, layout, error, painter);
  } else {
    paint_lanes(c, layout, error, painter);
  }
  picture.cells = painter.cells();
  return picture;
}

ChoicePainter::ChoicePainter(const Batch& batch, int64_t columns, std::string called)
    : painter_(batch.B * batch.S, columns),
      picture_{.rows = "tokens",
               .columns = std::move(called),
               .row_count = batch.B * batch.S,
               .column_count = columns,
               .batch = batch.S} {}

void ChoicePainter::add(int64_t row, const std::vector<int64_t>& judged,
                        const std::vector<int64_t>& oracle) {
  const std::set<int64_t> theirs(judged.begin(), judged.end()), ours(oracle.begin(), oracle.end());
  const auto exists = [&](int64_t pick) { return pick >= 0 && pick < picture_.column_count; };
  for (const int64_t pick : theirs)
    if (exists(pick)) painter_.add_digit(row, pick, ours.contains(pick) ? kBoth : kWorst);
  for (const int64_t pick : ours)
    if (exists(pick) && !theirs.contains(pick)) painter_.add_digit(row, pick, kOraclesAlone);
}

const Picture& ChoicePainter::picture() {
  picture_.cells = painter_.cells();
  return picture_;
}

}  // namespace dsv32::harness
