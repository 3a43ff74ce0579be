#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/cli/options.h"

namespace dsv32::harness {

/// Throws Error (usage) unless `word` is one of `known`; `what` says what kind of name it is.
void expect_one_of(const std::string& where, const std::string& what, const std::string& word,
                   const std::vector<std::string>& known);

/// Throws Error (usage): docs/architecture.md 4 keeps `name` for a later version.
[[noreturn]] void not_in_this_version(const std::string& name);

/// Turns text into a number or a type; throws Error (usage).
uint64_t parse_seed(const std::string& where, const std::string& text);
int64_t parse_count(const std::string& where, const std::string& text, int64_t first, int64_t last);
/// `called`: what the text should be, "number of seconds".
double parse_positive(const std::string& where, const std::string& text, const std::string& called);
double parse_seconds(const std::string& where, const std::string& text);
DType parse_float_type(const std::string& where, const std::string& text);

/// Checks every name in `options` that can be checked without opening a file. Throws Error (usage).
void check_names(const Options& options);

/// "a", "b or c", "a, b or c".
std::string alternatives(const std::vector<std::string>& words);

}  // namespace dsv32::harness
