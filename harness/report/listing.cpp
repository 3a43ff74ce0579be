#include "harness/report/listing.h"

#include <nlohmann/json.hpp>

#include "harness/report/text.h"

namespace dsv32::harness {
namespace {

using Json = nlohmann::ordered_json;
constexpr size_t kNameWidth = 24;  // "layers.N.router.weights"

}  // namespace

std::string listing_text(const Listing& listing) {
  std::string text, kind;
  for (const ListEntry& entry : listing) {
    if (entry.kind != kind) text += "  " + entry.kind + ":\n";
    kind = entry.kind;
    text += "  " + padded(entry.name, kNameWidth) + " " + entry.about + "\n";
  }
  return text;
}

std::string listing_json(const std::vector<std::pair<std::string, Listing>>& groups) {
  Json json = Json::object();
  for (const auto& [group, listing] : groups) {
    Json& entries = json[group] = Json::array();
    for (const ListEntry& entry : listing) {
      entries.push_back({{"name", entry.name}, {"about", entry.about}});
      if (!entry.kind.empty()) entries.back()["kind"] = entry.kind;
    }
  }
  return json.dump(2) + "\n";
}

}  // namespace dsv32::harness
