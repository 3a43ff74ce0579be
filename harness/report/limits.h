#pragma once

#include <string>

/// The tables of limits, for `list limits`: every row, and nothing else.
namespace dsv32::harness {

/// One line a row, in three tables: taps, single numbers, ops.
std::string limits_text();
/// {"taps": [...], "checks": [...], "ops": [...]}; numbers as they are in the tables.
std::string limits_json();

}  // namespace dsv32::harness
