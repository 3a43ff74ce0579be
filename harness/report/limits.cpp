#include "harness/report/limits.h"

#include <array>
#include <charconv>
#include <nlohmann/json.hpp>
#include <vector>

#include "harness/judge/limits.h"
#include "harness/judge/op_limits.h"
#include "harness/report/text.h"

namespace dsv32::harness {
namespace {

using Json = nlohmann::ordered_json;

/// The shortest text that reads back as this number.
std::string exactly(double value) {
  std::array<char, 32> text;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value);
  return {text.data(), end.ptr};
}

std::string with_unit(const Number& number) {
  const std::string unit(to_string(number.unit));
  return exactly(number.value) + (unit.empty() ? "" : " " + unit);
}

/// Columns that are as wide as their widest cell.
std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows.front().size());
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], columns(row[i]));
  std::string text;
  for (const auto& row : rows) {
    for (size_t i = 0; i + 1 < row.size(); ++i) text += padded(row[i], widths[i]) + "  ";
    text += row.back() + "\n";
  }
  return text;
}

std::string taps_text() {
  std::vector<std::vector<std::string>> rows = {{"mode", "taps", "dtypes", "row", "tensor", "cap",
                                                 "tail", "fraction", "count", "max", "basis"}};
  for (const TapLimits& l : tap_limits())
    rows.push_back({std::string(to_string(l.mode)), std::string(to_string(l.rows)),
                    std::string(to_string(l.dtypes)), exactly(l.row_ratio), exactly(l.tensor_ratio),
                    exactly(l.cap), exactly(l.tail), exactly(l.tail_fraction),
                    exactly(l.tail_count), exactly(l.max_tail), l.basis});
  return table(rows);
}

std::string checks_text() {
  std::vector<std::vector<std::string>> rows = {
      {"check", "configs", "dtypes", "metric", "limit", "basis"}};
  for (const Limit& l : limits())
    rows.push_back({l.check, std::string(to_string(l.configs)), std::string(to_string(l.dtypes)),
                    l.metric, with_unit(l.number), l.basis});
  return table(rows);
}

std::string ops_text() {
  std::vector<std::vector<std::string>> rows = {{"tensor of an op", "float32", "bf16", "basis"}};
  for (const OpLimit& l : op_limits())
    rows.push_back({l.tensor, exactly(l.float32), exactly(l.bf16), l.basis});
  return table(rows);
}

Json tap_json(const TapLimits& l) {
  return {{"mode", to_string(l.mode)},
          {"taps", to_string(l.rows)},
          {"dtypes", to_string(l.dtypes)},
          {"row ratio", l.row_ratio},
          {"tensor ratio", l.tensor_ratio},
          {"cap", l.cap},
          {"tail threshold", l.tail},
          {"tail fraction", l.tail_fraction},
          {"tail", l.tail_count},
          {"max tail", l.max_tail},
          {"basis", l.basis}};
}

Json check_json(const Limit& l) {
  return {
      {"check", l.check},   {"configs", to_string(l.configs)}, {"dtypes", to_string(l.dtypes)},
      {"metric", l.metric}, {"limit", l.number.value},         {"unit", to_string(l.number.unit)},
      {"basis", l.basis}};
}

Json op_json(const OpLimit& l) {
  return {{"tensor", l.tensor}, {"float32", l.float32}, {"bf16", l.bf16}, {"basis", l.basis}};
}

}  // namespace

std::string limits_text() { return taps_text() + "\n" + checks_text() + "\n" + ops_text(); }

std::string limits_json() {
  Json json{{"taps", Json::array()}, {"checks", Json::array()}, {"ops", Json::array()}};
  for (const TapLimits& l : tap_limits()) json["taps"].push_back(tap_json(l));
  for (const Limit& l : limits()) json["checks"].push_back(check_json(l));
  for (const OpLimit& l : op_limits()) json["ops"].push_back(op_json(l));
  return json.dump(2) + "\n";
}

}  // namespace dsv32::harness
