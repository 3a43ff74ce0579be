#pragma once

#include <string>

/// Talk for people, on stderr; data goes to stdout. Its implementation is the one file that knows
/// the logging library.
namespace dsv32 {

enum class LogLevel { error, warning, info, debug, trace };

/// Messages below `level` are dropped from now on; the start value is `info`.
void set_log_level(LogLevel level);

void log_error(const std::string& message);
void log_warning(const std::string& message);
void log_info(const std::string& message);
void log_debug(const std::string& message);
void log_trace(const std::string& message);

}  // namespace dsv32
