// Text of strangers on its way to a terminal or a report.
#include "src/io/print.h"

#include <gtest/gtest.h>

#include <limits>

namespace dsv32::io {
namespace {

TEST(SelfPrint, KeepsReadableTextOfAnyLanguage) {
  for (const char* text : {"layers.0.ix.q", "naïve 模型 ✓", ""}) EXPECT_EQ(printable(text), text);
}

TEST(SelfPrint, ShowsWhatSteersATerminalAsBytes) {
  EXPECT_EQ(printable("\x1b[2J"), "\\x1b[2J");
  EXPECT_EQ(printable("a\xe2\x80\xae"
                      "b"),
            "a\\xe2\\x80\\xaeb");                              // right-to-left override
  EXPECT_EQ(printable("\xff\xc3"), "\\xff\\xc3");              // no UTF-8
  EXPECT_EQ(printable("\xed\xa0\x80").substr(0, 4), "\\xed");  // a surrogate
}

TEST(SelfPrint, IsOneLine) { EXPECT_EQ(printable("a\nb\tc\rd"), "a b c d"); }

TEST(SelfPrint, IsCutAtACharacter) {
  EXPECT_EQ(printable("abcdefgh", 6), "abc...");
  EXPECT_EQ(printable("ab\u00e9\u00e9\u00e9", 6), "ab...");
  EXPECT_EQ(printable("abcdef", 6), "abcdef");
}

TEST(SelfPrint, NumbersHaveThreeDigits) {
  EXPECT_EQ(number(612.34), "612");
  EXPECT_EQ(number(1.0 / 3), "0.333");
  EXPECT_EQ(number(2e-9), "2e-09");
  EXPECT_EQ(number(std::numeric_limits<double>::quiet_NaN()), "nan");
  EXPECT_EQ(number(-std::numeric_limits<double>::infinity()), "-inf");
}

}  // namespace
}  // namespace dsv32::io
