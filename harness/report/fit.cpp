#include "harness/report/fit.h"

#include <algorithm>
#include <sstream>
#include <vector>

#include "harness/report/text.h"

namespace dsv32::harness {
namespace {

constexpr size_t kDetail = 14;  // where the text of a detail line begins
constexpr char kEscape = '\x1b';

/// Columns without escape sequences of colours.
size_t visible(std::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != kEscape) {
      plain += text[i];
      continue;
    }
    while (i < text.size() && text[i] != 'm') ++i;
  }
  return columns(plain);
}

/// A word and the blanks before it.
struct Word {
  size_t gap = 0;
  std::string text;
};

/// Words between blanks; a quoted word of a shell is one where `shell`.
std::vector<Word> words_of(const std::string& line, bool shell) {
  std::vector<Word> words;
  Word word;
  bool quoted = false;
  for (const char c : line) {
    if (shell && c == '\'') quoted = !quoted;
    if (c != ' ' || quoted) {
      word.text += c;
      continue;
    }
    if (!word.text.empty()) {
      words.push_back(std::move(word));
      word = {};
    }
    ++word.gap;
  }
  if (!word.text.empty()) words.push_back(word);
  return words;
}

/// As much of a long word as fits into `room` columns; at least one character.
std::string cut_off(std::string& word, size_t room) {
  size_t end = 0;
  for (size_t used = 0; end < word.size(); ++end) {
    const bool starts = (static_cast<unsigned char>(word[end]) & 0xC0) != 0x80;
    if (starts && used++ >= std::max<size_t>(room, 1)) break;
  }
  const std::string head = word.substr(0, end);
  word.erase(0, end);
  return head;
}

bool is_command(const std::string& line) {
  return line.starts_with("    repro ") || line.starts_with("run ");
}

class Breaker {
 public:
  Breaker(size_t width, size_t indent, bool command)
      : width_(command ? width - 2 : width), indent_(indent), command_(command) {}

  std::string broken(const std::string& line) {
    for (Word& word : words_of(line, command_)) add(word);
    return out_;
  }

 private:
  void add(Word& next) {
    std::string& word = next.text;
    if (!fresh_ && used_ + next.gap + visible(word) > width_) next_line();
    if (!broke_) {
      out_ += std::string(next.gap, ' ');
      used_ += next.gap;
    }
    // A word of a command stays whole: a break in it would be part of it.
    const bool text = !command_ && word.find(kEscape) == std::string::npos;
    while (text && used_ + visible(word) > width_) {
      out_ += cut_off(word, width_ - used_);
      next_line();
    }
    out_ += word;
    used_ += visible(word);
    fresh_ = broke_ = false;
  }

  void next_line() {
    out_ += (command_ ? " \\\n" : "\n") + std::string(indent_, ' ');
    used_ = indent_;
    fresh_ = broke_ = true;
  }

  const size_t width_, indent_;
  const bool command_;
  std::string out_;
  size_t used_ = 0;
  bool fresh_ = true;   // nothing on this line yet
  bool broke_ = false;  // this line continues another
};

}  // namespace

std::string fitted(const std::string& text, size_t width) {
  constexpr size_t kWide = 60;
  std::istringstream lines(text);
  std::string out;
  for (std::string line; std::getline(lines, line);) {
    const size_t start = line.find_first_not_of(' ');
    if (visible(line) <= width || start == std::string::npos) {
      out += line + "\n";
      continue;
    }
    const bool detail = start == 4;  // "    label     text"
    const size_t indent = detail && width >= kWide ? kDetail : start + 2;
    out += Breaker(width, std::min(indent, width / 2), is_command(line)).broken(line) + "\n";
  }
  return out;
}

}  // namespace dsv32::harness
