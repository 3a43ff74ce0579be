#include <nlohmann/json.hpp>

#include "src/io/io.h"
#include "src/model/errors.h"

namespace dsv32::io {
namespace {

using nlohmann::json;

[[noreturn]] void refuse(const std::string& where, const std::string& key, const std::string& got) {
  throw Error(ExitCode::artefact, {.where = where, .what = "metadata " + key, .expected = "JSON as FORMATS 4 says",
                                   .got = got, .hint = "make the file with golden/dump.py"});
}

std::optional<json> parsed(const Trace& trace, const std::string& key, json::value_t type, const std::string& where) {
  const auto found = trace.metadata.find(key);
  if (found == trace.metadata.end()) return std::nullopt;
  json value = json::parse(found->second, nullptr, /*allow_exceptions=*/false);
  if (value.type() != type) refuse(where, key, found->second.substr(0, 80));
  return value;
}

std::vector<std::string> names(const json& list, const std::string& where, const std::string& key) {
  std::vector<std::string> out;
  if (list.is_null()) return out;
  if (!list.is_array()) refuse(where, key, list.dump().substr(0, 80));
  for (const json& entry : list) {
    if (!entry.is_string()) refuse(where, key, entry.dump().substr(0, 80));
    out.push_back(entry.get<std::string>());
  }
  return out;
}

json member(const json& object, const char* key) { return object.contains(key) ? object.at(key) : json(); }

std::string text(const json& value) {
  if (value.is_null()) return "";
  return value.is_string() ? value.get<std::string>() : value.dump();
}

}  // namespace

CandidateNotes candidate_notes(const Trace& trace, const std::string& where) {
  CandidateNotes notes;
  if (const auto loaded = parsed(trace, "weights_loaded", json::value_t::object, where)) {
    const json count = member(*loaded, "identical");
    if (!count.is_number_unsigned()) refuse(where, "weights_loaded", loaded->dump().substr(0, 80));
    notes.weights = {.identical = count.get<int64_t>(),
                     .different = names(member(*loaded, "different"), where, "weights_loaded"),
                     .missing = names(member(*loaded, "missing"), where, "weights_loaded"),
                     .unexpected = names(member(*loaded, "unexpected"), where, "weights_loaded")};
  }
  if (const auto failure = parsed(trace, "failure", json::value_t::object, where)) {
    notes.failure = {.where = text(member(*failure, "where")),
                     .message = text(member(*failure, "message")),
                     .shapes = text(member(*failure, "shapes"))};
  }
  if (const auto missing = parsed(trace, "missing_taps", json::value_t::array, where)) {
    notes.missing_taps = names(*missing, where, "missing_taps");
  }
  return notes;
}

}  // namespace dsv32::io
