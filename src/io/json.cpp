#include "src/io/json.h"

#include <charconv>
#include <cmath>
#include <set>
#include <vector>

#include "src/io/text.h"

namespace dsv32::io {
namespace {

constexpr int kMaxDepth = 16;
constexpr int64_t kMaxValues = 2'000'000;

/// Looks at each event while the parser builds the value.
class Guard {
 public:
  explicit Guard(std::string where) : where_(std::move(where)) {}

  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (depth > kMaxDepth) fail("depth", "at most " + std::to_string(kMaxDepth), "deeper nesting");
    if (++values_ > kMaxValues)
      fail("size", "at most " + std::to_string(kMaxValues) + " values", "more");
    if (event == Event::object_start) keys_.emplace_back();
    if (event == Event::object_end) keys_.pop_back();
    if (event == Event::key) check_key(parsed.get_ref<const std::string&>());
    return true;
  }

 private:
  void check_key(const std::string& key) {
    if (!keys_.back().insert(key).second) fail("duplicate key", "each key once", printable(key));
  }
  void fail(const std::string& what, const std::string& expected, const std::string& got) {
    refuse({.where = where_, .what = what, .expected = expected, .got = got});
  }

  std::string where_;
  std::vector<std::set<std::string>> keys_;
  int64_t values_ = 0;
};

/// The digits of a positive finite number as ECMAScript prints them (7.1.12.1), from the shortest
/// scientific form.
std::string ecmascript(double value) {
  char buffer[32];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  const std::string text(buffer, end.ptr);
  const size_t e = text.find('e');
  std::string digits = text.substr(0, e);
  std::erase(digits, '.');
  const int point = std::stoi(text.substr(e + 1)) + 1;  // digits before the decimal point
  const int count = static_cast<int>(digits.size());
  if (point > 0 && point <= 21) {
    if (count <= point) return digits + std::string(point - count, '0');
    return digits.substr(0, point) + "." + digits.substr(point);
  }
  if (point > -6 && point <= 0) return "0." + std::string(-point, '0') + digits;
  const std::string exponent = (point > 0 ? "e+" : "e-") + std::to_string(std::abs(point - 1));
  return digits.substr(0, 1) + (count > 1 ? "." + digits.substr(1) : "") + exponent;
}

std::string canonical_number(double value) {
  if (value == 0) return "0";
  return std::string(value < 0 ? "-" : "") + ecmascript(std::abs(value));
}

template <typename Range, typename Print>
std::string joined(const Range& range, char open, char close, Print print) {
  std::string out(1, open);
  for (auto it = range.begin(); it != range.end(); ++it)
    out += (it == range.begin() ? "" : ",") + print(it);
  return out + close;
}

}  // namespace

Json parse_json(const std::string& text, const std::string& where) {
  try {
    // The parser takes a NUL byte for the end of its input.
    if (text.find('\0') != std::string::npos)
      refuse({.where = where, .what = "JSON", .expected = "text", .got = "a NUL byte"});
    Guard guard(where);
    return Json::parse(text, [&guard](int depth, Json::parse_event_t event, Json& parsed) {
      return guard(depth, event, parsed);
    });
  } catch (const Json::exception& error) {
    const std::string_view message = error.what();  // "[json.exception....] parse error at ..."
    const size_t space = message.find("] ");
    refuse({.where = where,
            .what = "JSON",
            .expected = "one well-formed value",
            .got = printable(space == message.npos ? message : message.substr(space + 2))});
  }
}

std::string canonical_json(const Json& value) {
  if (value.is_object())
    return joined(value, '{', '}',
                  [](auto it) { return Json(it.key()).dump() + ":" + canonical_json(*it); });
  if (value.is_array()) return joined(value, '[', ']', [](auto it) { return canonical_json(*it); });
  if (value.is_number_float()) return canonical_number(value.get<double>());
  return value.dump();
}

std::string kind_of(const Json& value) {
  if (value.is_null()) return "null";
  if (value.is_string()) return "\"" + printable(value.get_ref<const std::string&>()) + "\"";
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  return canonical_json(value);
}

}  // namespace dsv32::io
