#include "src/io/trace/placement.h"

#include <charconv>

#include "src/io/json.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

int64_t count_of(const Metadata& metadata, const char* key, int64_t fallback, int64_t least,
                 const std::string& where) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) return fallback;
  const std::string& text = found->second;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size() && value >= least) return value;
  refuse({.where = where,
          .what = "metadata." + std::string(key),
          .expected = "a number from " + std::to_string(least) + " on",
          .got = printable(text)});
}

[[noreturn]] void refuse_placement(const std::string& where, const std::string& pattern,
                                   const std::string& got) {
  refuse({.where = where,
          .what = "metadata.placement: " + printable(pattern),
          .expected = R"("replicated", "partial" or {"dim": D, "offset": O})",
          .got = printable(got)});
}

Placement placement_of(const Json& value, const std::string& pattern, const std::string& where) {
  using Kind = Placement::Kind;
  if (value == "replicated") return {Kind::replicated};
  if (value == "partial") return {Kind::partial};
  const bool piece = value.is_object() && value.size() == 2 && value.contains("dim") &&
                     value.contains("offset") && value["dim"].is_number_unsigned() &&
                     value["offset"].is_number_unsigned();
  if (!piece) refuse_placement(where, pattern, value.dump());
  return {Kind::piece, value["dim"].get<int64_t>(), value["offset"].get<int64_t>()};
}

/// `*` stands for any text.
bool fits(std::string_view pattern, std::string_view name) {
  const size_t star = pattern.find('*');
  if (star == std::string_view::npos) return pattern == name;
  if (!name.starts_with(pattern.substr(0, star))) return false;
  const std::string_view rest = pattern.substr(star + 1);
  for (size_t from = star; from <= name.size(); ++from)
    if (fits(rest, name.substr(from))) return true;
  return false;
}

}  // namespace

Placements::Placements(const Metadata& metadata, const std::string& where)
    : rank_(count_of(metadata, "rank", 0, 0, where)),
      world_(count_of(metadata, "world", 1, 1, where)) {
  if (rank_ >= world_)
    refuse({.where = where,
            .what = "metadata.rank",
            .expected = "a rank below world, " + std::to_string(world_),
            .got = std::to_string(rank_)});
  const auto text = metadata.find("placement");
  if (text == metadata.end()) return;
  const Json json = parse_json(text->second, where + ": metadata.placement");
  if (!json.is_object()) refuse_placement(where, "*", text->second);
  for (const auto& [pattern, value] : json.items())
    patterns_[pattern] = placement_of(value, pattern, where);
}

Placement Placements::of(const std::string& tensor) const {
  if (const auto own = patterns_.find(tensor); own != patterns_.end()) return own->second;
  Placement found;
  size_t longest = 0;
  for (const auto& [pattern, placement] : patterns_) {
    if (pattern.size() <= longest || !fits(pattern, tensor)) continue;
    longest = pattern.size();
    found = placement;
  }
  return found;
}

}  // namespace dsv32::io
