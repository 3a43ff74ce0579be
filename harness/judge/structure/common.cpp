#include <algorithm>
#include <map>
#include <set>

#include "harness/judge/limits.h"
#include "harness/judge/structure/parts.h"

namespace dsv32::harness {
namespace {

/// A property of rows: which of its values a row has; -1 for none.
struct Property {
  std::string name;  // "tokens with id", completed by the value
  std::function<int64_t(const Row&)> value;
};

std::vector<Property> properties(const Comparison& c) {
  std::vector<Property> out = {
      {"batch row", [](const Row& row) { return row.b; }},
      {"head", [](const Row& row) { return row.h; }},
      {"token position", [](const Row& row) { return row.s; }},
  };
  if (c.batch == nullptr) return out;
  const Batch& batch = *c.batch;
  const auto index = [&batch](const Row& row) { return row.b * batch.S + row.s; };
  out.push_back({"token id", [&batch, index](const Row& row) {
                   return row.b < 0 || row.s < 0 ? -1 : batch.input_ids[index(row)];
                 }});
  for (int64_t period = 2; period <= 8; ++period)
    out.push_back({"token position, counted modulo " + std::to_string(period) + ",",
                   [period](const Row& row) { return row.s < 0 ? -1 : row.s % period; }});
  return out;
}

/// Rows beyond their limit.
std::vector<bool> failing_rows(const Comparison& c, const TapError& error) {
  const double limit = limits_for(c.tap, c.mode, c.dtype).row_ratio;
  std::vector<bool> failing;
  for (const RowError& row : error.rows) failing.push_back(!(error.row_ratio(row) <= limit));
  return failing;
}

/// The values that all failing rows have and no other row has; empty: there is no such set.
std::set<int64_t> telling_values(const RowLayout& layout, const std::vector<bool>& failing,
                                 const Property& property) {
  std::set<int64_t> of_failing, of_others;
  for (size_t r = 0; r < failing.size(); ++r) {
    const int64_t value = property.value(layout.rows()[r]);
    if (value < 0) return {};
    (failing[r] ? of_failing : of_others).insert(value);
  }
  for (const int64_t value : of_failing)
    if (of_others.contains(value)) return {};
  return of_failing;
}

/// The rank that holds nearly all of the error, of a tap that came in pieces.
std::string describe_rank(const Comparison& c, const RowLayout& layout, const TapError& error) {
  if (c.pieces == nullptr || !(error.judged > 0)) return "";
  std::map<int64_t, double> squares;
  std::vector<double> o, k;
  for (const Row& row : layout.rows()) {
    layout.gather(*c.yardstick.oracle, row, o);
    layout.gather(*c.judged, row, k);
    for (size_t i = 0; i < o.size(); ++i) {
      const double d = k[i] - o[i];
      const auto at = layout.unravel(layout.flat_index(row, static_cast<int64_t>(i)));
      for (const RankPiece& piece : *c.pieces) {
        const int64_t index = at[static_cast<size_t>(piece.dim)];
        if (index >= piece.first && index < piece.last) squares[piece.rank] += d * d;
      }
    }
  }
  for (const RankPiece& piece : *c.pieces) {
    const double share = squares[piece.rank] / (error.judged * error.judged);
    if (!(share >= limit_of("structure.share")) || squares.size() < 2) continue;
    return "rank " + std::to_string(piece.rank) + " (axis " + std::to_string(piece.dim) + ", " +
           std::to_string(piece.first) + " to " + std::to_string(piece.last - 1) +
           ") holds nearly all of the error";
  }
  return "";
}

std::string common_rows(const Comparison& c, const RowLayout& layout, const TapError& error);

}  // namespace

std::string describe_common(const Comparison& c, const RowLayout& layout, const TapError& error) {
  return joined({describe_rank(c, layout, error), common_rows(c, layout, error)});
}

namespace {

std::string common_rows(const Comparison& c, const RowLayout& layout, const TapError& error) {
  const bool tokens = !layout.rows().empty() && layout.rows()[0].b >= 0;
  if (!tokens || layout.rows().size() < 4) return "";
  const std::vector<bool> failing = failing_rows(c, error);
  const auto count = std::count(failing.begin(), failing.end(), true);
  if (count == 0) return "";
  const std::string of_rows =
      std::to_string(count) + " of " + std::to_string(failing.size()) + " rows fail";
  if (count == std::ssize(failing)) return "every row fails";
  constexpr size_t kMostValues = 3;
  for (const Property& property : properties(c)) {
    const std::set<int64_t> values = telling_values(layout, failing, property);
    if (values.empty() || values.size() > kMostValues) continue;
    std::string list;
    for (const int64_t value : values) list += (list.empty() ? " " : ", ") + std::to_string(value);
    return of_rows + ": those of " + property.name + list + " and no others";
  }
  return of_rows;
}

}  // namespace

}  // namespace dsv32::harness
