#pragma once

#include <functional>
#include <string>

namespace dsv32::harness {

/// One stream of a program that was started, handed on line by line. Whoever has it closes it.
class OutputLines {
 public:
  explicit OutputLines(int file) : file_(file) {}

  int file() const { return file_; }  // -1: at its end

  /// Reads what is there; closes at the end.
  void read_some(const std::function<void(const std::string& line)>& take);
  void close();

 private:
  int file_;
  std::string rest_;
};

}  // namespace dsv32::harness
