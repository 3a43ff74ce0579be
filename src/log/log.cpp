#include "src/log/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <memory>

namespace dsv32 {
namespace {

spdlog::color_mode colour() {
  return std::getenv("NO_COLOR") ? spdlog::color_mode::never : spdlog::color_mode::automatic;
}

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>(colour());
    auto made = std::make_shared<spdlog::logger>("dsv32-verify", sink);
    made->set_pattern("%n: %^%l%$: %v");
    made->flush_on(spdlog::level::trace);
    return made;
  }();
  return *instance;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::error:
      return spdlog::level::err;
    case LogLevel::warning:
      return spdlog::level::warn;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::trace:
      return spdlog::level::trace;
  }
  return spdlog::level::trace;
}

}  // namespace

void set_log_level(LogLevel level) { logger().set_level(to_spdlog(level)); }

void log_error(const std::string& message) { logger().error("{}", message); }
void log_warning(const std::string& message) { logger().warn("{}", message); }
void log_info(const std::string& message) { logger().info("{}", message); }
void log_debug(const std::string& message) { logger().debug("{}", message); }
void log_trace(const std::string& message) { logger().trace("{}", message); }

}  // namespace dsv32
