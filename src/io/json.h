#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace dsv32::io {

using Json = nlohmann::json;

/// Parses the JSON text of a file or of a metadata value strictly: one value, no duplicate keys,
/// bounded depth and size. Throws Error (artefact) that begins with `where`.
Json parse_json(const std::string& text, const std::string& where);

/// Writes JSON by RFC 8785: sorted keys, no spaces, numbers as ECMAScript prints them. Keys are
/// ASCII here, so that the byte order of the map is the order that the RFC asks for; integers stay
/// exact beyond 2^53.
std::string canonical_json(const Json& value);

/// "null", "a string", "an integer", ...: for `got`.
std::string kind_of(const Json& value);

}  // namespace dsv32::io
