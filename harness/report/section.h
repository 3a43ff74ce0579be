#pragma once

#include <string>

namespace dsv32::harness {

/// Whole lines up to a number of bytes; tells at the end how many blocks did not fit.
class Section {
 public:
  explicit Section(size_t bytes) : bytes_(bytes) {}

  void add(const std::string& block) {
    constexpr size_t kReserve = 100;  // for the line that tells what was left out
    if (left_out_ > 0 || text_.size() + block.size() + kReserve > bytes_) {
      ++left_out_;
    } else {
      text_ += block;
    }
  }

  std::string text() const {
    if (left_out_ == 0) return text_;
    return text_ + "\n_" + std::to_string(left_out_) + " more: see report.json._\n";
  }

 private:
  size_t bytes_, left_out_ = 0;
  std::string text_;
};

}  // namespace dsv32::harness
