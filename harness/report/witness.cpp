#include "harness/report/witness.h"

#include <nlohmann/json.hpp>

namespace dsv32::harness {
namespace {

using Json = nlohmann::json;

}  // namespace

std::string witnesses_json(const std::vector<Witness>& witnesses) {
  Json list = Json::array();
  for (const Witness& w : witnesses)
    list.push_back({{"party", static_cast<int>(w.subject.party)},
                    {"label", w.subject.label},
                    {"checks", w.checks},
                    {"failed", w.failed}});
  return list.dump();
}

std::optional<std::vector<Witness>> read_witnesses(const std::string& json) {
  try {
    std::vector<Witness> witnesses;
    for (const Json& w : Json::parse(json))
      witnesses.push_back({.subject = {.party = static_cast<Party>(w.at("party").get<int>()),
                                       .label = w.at("label")},
                           .checks = w.at("checks"),
                           .failed = w.at("failed")});
    return witnesses;
  } catch (const Json::exception&) {
    return std::nullopt;
  }
}

}  // namespace dsv32::harness
