#pragma once

#include <string>

/// What a suite may ask its main program (main.cpp).
namespace dsv32::suites {

/// The case named by `--case`; throws std::logic_error when the suite was started without one.
const std::string& suite_case();

}  // namespace dsv32::suites
