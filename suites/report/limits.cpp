// `list limits` prints the tables of limits: every row, and nothing else.

#include "harness/report/limits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <vector>

#include "harness/judge/limits.h"
#include "harness/judge/op_limits.h"
#include "src/io/json.h"

namespace dsv32::harness {
namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);)
    if (!line.empty()) lines.push_back(line);
  return lines;
}

/// How many lines begin with `name`, end with `basis` and hold every one of `cells`.
int64_t matches(const std::vector<std::string>& lines, const std::string& name,
                const std::vector<std::string>& cells, const std::string& basis) {
  return std::count_if(lines.begin(), lines.end(), [&](const std::string& line) {
    return line.starts_with(name + " ") && line.ends_with(" " + basis) &&
           std::all_of(cells.begin(), cells.end(), [&](const std::string& cell) {
             return line.find(" " + cell + " ") != std::string::npos;
           });
  });
}

std::string printed(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

TEST(ListLimits, PrintsEveryRowOnce) {
  const std::vector<std::string> lines = lines_of(limits_text());
  for (const Limit& l : limits())
    EXPECT_EQ(
        matches(lines, l.check,
                {std::string(to_string(l.configs)), std::string(to_string(l.dtypes)), l.metric},
                l.basis),
        1)
        << l.check;
  for (const TapLimits& l : tap_limits())
    EXPECT_EQ(matches(lines, std::string(to_string(l.mode)),
                      {std::string(to_string(l.rows)), printed(l.row_ratio), printed(l.cap),
                       printed(l.max_tail)},
                      l.basis),
              1)
        << l.basis;
  for (const OpLimit& l : op_limits()) EXPECT_EQ(matches(lines, l.tensor, {}, l.basis), 1);
}

TEST(ListLimits, PrintsNothingElse) {
  constexpr size_t kHeaders = 3;
  EXPECT_EQ(lines_of(limits_text()).size(),
            limits().size() + tap_limits().size() + op_limits().size() + kHeaders);
}

TEST(ListLimits, JsonHoldsTheNumbersThemselves) {
  const io::Json json = io::parse_json(limits_json(), "limits");
  ASSERT_EQ(json["checks"].size(), limits().size());
  for (size_t i = 0; i < limits().size(); ++i) {
    EXPECT_EQ(json["checks"][i]["check"], limits()[i].check);
    EXPECT_EQ(json["checks"][i]["limit"].get<double>(), limits()[i].number.value);
    EXPECT_EQ(json["checks"][i]["basis"], limits()[i].basis);
  }
  ASSERT_EQ(json["taps"].size(), tap_limits().size());
  for (size_t i = 0; i < tap_limits().size(); ++i)
    EXPECT_EQ(json["taps"][i]["row ratio"].get<double>(), tap_limits()[i].row_ratio);
  ASSERT_EQ(json["ops"].size(), op_limits().size());
  for (size_t i = 0; i < op_limits().size(); ++i)
    EXPECT_EQ(json["ops"][i]["bf16"].get<double>(), op_limits()[i].bf16);
}

}  // namespace
}  // namespace dsv32::harness
