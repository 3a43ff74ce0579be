#pragma once

#include <string>

/// Bytes and seconds for people.
namespace dsv32::io {

/// "640 bytes", "12.3 MiB", "641.3 GiB".
std::string size_text(double bytes);
/// "0:07", "52:10", "1:02:03".
std::string clock_text(double seconds);

}  // namespace dsv32::io
