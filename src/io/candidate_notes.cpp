#include "src/io/io.h"
#include "src/io/json.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

[[noreturn]] void refuse_note(const std::string& where, const std::string& key,
                              const std::string& got) {
  refuse({.where = where,
          .what = "metadata." + key,
          .expected = "JSON as docs/formats.md 4 says",
          .got = got,
          .hint = "make the file with golden/dump"});
}

std::optional<Json> parsed(const Trace& trace, const std::string& key, Json::value_t type,
                           const std::string& where) {
  const auto found = trace.metadata.find(key);
  if (found == trace.metadata.end()) return std::nullopt;
  Json value = parse_json(found->second, where + ": metadata." + key);
  if (value.type() != type) refuse_note(where, key, kind_of(value));
  return value;
}

std::vector<std::string> names(const Json& list, const std::string& where, const std::string& key) {
  std::vector<std::string> out;
  if (list.is_null()) return out;
  if (!list.is_array()) refuse_note(where, key, kind_of(list));
  for (const Json& entry : list) {
    if (!entry.is_string()) refuse_note(where, key, kind_of(entry));
    out.push_back(entry.get<std::string>());
  }
  return out;
}

Json member(const Json& object, const char* key) {
  return object.contains(key) ? object.at(key) : Json();
}

std::string text(const Json& value) {
  if (value.is_null()) return "";
  return value.is_string() ? value.get<std::string>() : value.dump();
}

}  // namespace

Facts facts_of(const std::string& json, const std::string& where) {
  const Json object = parse_json(json, where);
  if (!object.is_object()) {
    refuse({.where = where, .what = "", .expected = "a JSON object", .got = kind_of(object)});
  }
  Facts facts;
  for (const auto& [name, value] : object.items()) facts.emplace_back(name, text(value));
  return facts;
}

CandidateNotes candidate_notes(const Trace& trace, const std::string& where) {
  CandidateNotes notes;
  if (const auto loaded = parsed(trace, "weights_loaded", Json::value_t::object, where)) {
    const Json count = member(*loaded, "identical");
    if (!count.is_number_unsigned()) refuse_note(where, "weights_loaded", kind_of(*loaded));
    notes.weights = {.identical = count.get<int64_t>(),
                     .different = names(member(*loaded, "different"), where, "weights_loaded"),
                     .missing = names(member(*loaded, "missing"), where, "weights_loaded"),
                     .unexpected = names(member(*loaded, "unexpected"), where, "weights_loaded")};
  }
  if (const auto failure = parsed(trace, "failure", Json::value_t::object, where)) {
    notes.failure = {.where = text(member(*failure, "where")),
                     .message = text(member(*failure, "message")),
                     .shapes = text(member(*failure, "shapes")),
                     .raised_at = text(member(*failure, "raised_at"))};
  }
  if (const auto missing = parsed(trace, "missing_taps", Json::value_t::array, where)) {
    notes.missing_taps = names(*missing, where, "missing_taps");
  }
  if (const auto derived = parsed(trace, "derived_taps", Json::value_t::array, where)) {
    notes.derived_taps = names(*derived, where, "derived_taps");
  }
  if (const auto stopped = parsed(trace, "slopes_none", Json::value_t::array, where)) {
    notes.slopes_none = names(*stopped, where, "slopes_none");
  }
  if (const auto unjudged = parsed(trace, "unjudged_tensors", Json::value_t::array, where)) {
    notes.unjudged_tensors = names(*unjudged, where, "unjudged_tensors");
  }
  const auto producer = trace.metadata.find("producer");
  if (producer != trace.metadata.end())
    notes.producer = facts_of(producer->second, where + ": metadata.producer");
  return notes;
}

}  // namespace dsv32::io
