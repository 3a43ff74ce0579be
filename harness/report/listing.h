#pragma once

#include <string>
#include <utility>
#include <vector>

/// What `list` prints of suites, cases, taps, dialects, bugs and configs.
namespace dsv32::harness {

/// A name that a user may type, and what it means. `kind`: what it is within its group; "" where
/// all are alike.
struct ListEntry {
  std::string name, about;
  std::string kind = {};
};
using Listing = std::vector<ListEntry>;

/// One line an entry, with a line before the first of each kind.
std::string listing_text(const Listing& listing);
/// {"cases": [{"name", "about", "kind" where there is one}, ...], ...}
std::string listing_json(const std::vector<std::pair<std::string, Listing>>& groups);

}  // namespace dsv32::harness
