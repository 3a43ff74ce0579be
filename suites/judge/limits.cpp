// The tables of limits: every row is used, can be reached, stands once and says where it is from.

#include "harness/judge/limits.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "harness/judge/op_limits.h"

namespace dsv32::suites {
namespace {

namespace fs = std::filesystem;
using harness::Limit;
using harness::Mode;
using harness::OpLimit;
using harness::TapLimits;
using harness::Where;
using Names = std::set<std::string>;

const std::vector<DType> kDTypes = {DType::float64, DType::float32, DType::bfloat16,
                                    DType::float16};
// A config of each family that a row may hold for, and a user's own.
const std::vector<std::string> kConfigs = {"tiny", "small", "medium", "full", "own/config.json"};

std::string text_of(const fs::path& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

/// All C++ of a folder of the repository, but for `skipped`, a folder or a file.
std::string sources(const std::string& folder, const std::string& skipped = "-") {
  const fs::path root(DSV32_SOURCE_DIR);
  std::string all;
  for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
    const std::string name = fs::relative(entry.path(), root).string();
    const bool cxx = name.ends_with(".cpp") || name.ends_with(".h");
    if (entry.is_regular_file() && cxx && !name.starts_with(skipped)) all += text_of(entry.path());
  }
  return all;
}

/// What stands from `at` to the comma or parenthesis that ends the first argument.
std::string first_argument(const std::string& text, size_t at) {
  size_t end = at;
  for (int depth = 0; end < text.size(); ++end) {
    const char c = text[end];
    if (depth == 0 && (c == ',' || c == ')')) break;
    depth += c == '(' || c == '{' ? 1 : c == ')' || c == '}' ? -1 : 0;
  }
  return text.substr(at, end - at);
}

/// The literals in the first argument of every call of these functions, joined by |.
Names asked_for(const std::string& text, const std::string& functions) {
  const std::regex call("\\b(" + functions + ")\\("), literal("\"([^\"]+)\"");
  Names names;
  for (std::sregex_iterator it(text.begin(), text.end(), call), end; it != end; ++it) {
    const std::string argument =
        first_argument(text, static_cast<size_t>(it->position() + it->length()));
    for (std::sregex_iterator word(argument.begin(), argument.end(), literal); word != end; ++word)
      names.insert((*word)[1]);
  }
  return names;
}

// The judge's own tests do not count: a row that they alone ask for judges nothing.
TEST(SelfLimits, EveryRowIsAskedForAndNoOther) {
  Names rows;
  for (const Limit& limit : harness::limits()) rows.insert(limit.check);
  const std::string text = sources("harness") + sources("suites", "suites/judge/");
  EXPECT_EQ(asked_for(text, "by_limit|limit_of|judge_by"), rows);
}

TEST(SelfLimits, EveryRowOfAnOpIsAskedFor) {
  const std::string text = sources("suites/ops") + sources("suites/kernels");
  for (const OpLimit& limit : harness::op_limits())
    EXPECT_NE(text.find("\"" + std::string(limit.tensor) + "\""), std::string::npos)
        << limit.tensor;
}

// A row behind one that holds everywhere would decide nothing.
TEST(SelfLimits, EveryRowDecidesSomewhere) {
  std::set<const Limit*> decisive;
  for (const Limit& limit : harness::limits())
    for (const std::string& config : kConfigs)
      for (const DType dtype : kDTypes)
        decisive.insert(&harness::find_limit(limit.check, {.config = config, .dtype = dtype}));
  for (const Limit& limit : harness::limits())
    EXPECT_TRUE(decisive.contains(&limit)) << limit.check << " " << to_string(limit.configs);
}

/// A tap, or a gradient by one.
TapName named(const std::string& name) {
  std::optional<TapName> tap = parse_slope(name);
  if (!tap) return *parse_tap(name);
  tap->full = name;
  return *tap;
}

TEST(SelfLimits, EveryRowOfTapsDecidesSomewhere) {
  std::set<const TapLimits*> decisive;
  for (const Mode mode : {Mode::staged, Mode::forced, Mode::free, Mode::exact})
    for (const char* tap :
         {"logits", "layers.0.ix.scores", "loss.lm", "grad.lm_head.weight", "dtap.embed"})
      for (const DType dtype : kDTypes)
        decisive.insert(&harness::limits_for(named(tap), mode, dtype));
  EXPECT_EQ(decisive.size(), harness::tap_limits().size());
}

TEST(SelfLimits, NoRowStandsTwice) {
  Names names;
  for (const Limit& l : harness::limits())
    EXPECT_TRUE(names
                    .insert(std::string(l.check) + " " + std::string(to_string(l.configs)) + " " +
                            std::string(to_string(l.dtypes)))
                    .second)
        << l.check;
  for (const TapLimits& l : harness::tap_limits())
    EXPECT_TRUE(names
                    .insert(std::string(to_string(l.mode)) + " " + std::string(to_string(l.rows)) +
                            " " + std::string(to_string(l.dtypes)))
                    .second)
        << l.basis;
  for (const OpLimit& l : harness::op_limits()) EXPECT_TRUE(names.insert(l.tensor).second);
}

// Names of measurements to be made are words of capitals: MEASURED_G once reached the users.
void expect_basis(const std::string& row, const std::string& basis) {
  const std::regex placeholder("[A-Z]+_[A-Z]|MEASURED|TBD|\\?\\?|^\\s*$");
  EXPECT_FALSE(basis.empty()) << row;
  EXPECT_FALSE(std::regex_search(basis, placeholder)) << row << ": " << basis;
}

TEST(SelfLimits, EveryRowHasABasis) {
  for (const Limit& l : harness::limits()) expect_basis(l.check, l.basis);
  for (const TapLimits& l : harness::tap_limits())
    expect_basis(std::string(to_string(l.rows)), l.basis);
  for (const OpLimit& l : harness::op_limits()) expect_basis(l.tensor, l.basis);
}

TEST(SelfLimits, EveryNumberIsPositiveAndFinite) {
  const auto sound = [](double value) { return value > 0 && std::isfinite(value); };
  for (const Limit& l : harness::limits()) EXPECT_TRUE(sound(l.number.value)) << l.check;
  for (const TapLimits& l : harness::tap_limits()) {
    for (const double value :
         {l.row_ratio, l.tensor_ratio, l.cap, l.tail, l.tail_fraction, l.tail_count, l.max_tail})
      EXPECT_TRUE(sound(value)) << l.basis;
    EXPECT_GE(l.max_tail, l.tail) << l.basis;
  }
  for (const OpLimit& l : harness::op_limits())
    EXPECT_TRUE(sound(l.float32) && sound(l.bf16)) << l.tensor;
}

// --- look-ups -----------------------------------------------------------------------------------

TEST(SelfLimits, ConfigChoosesTheRow) {
  const auto limit = [](const std::string& config) {
    return harness::by_limit("descent.loss", {.config = config}, 0);
  };
  EXPECT_LT(limit("tiny").limit, limit("small").limit);
  EXPECT_EQ(limit("small").limit, limit("own/config.json").limit);
  EXPECT_NE(limit("tiny").basis, limit("small").basis);
  EXPECT_NE(harness::by_limit("golden.relative", {.config = "small"}, 0).basis,
            harness::by_limit("golden.relative", {.config = "medium"}, 0).basis);
}

TEST(SelfLimits, MeasuresAreHeldAgainstTheRow) {
  const double limit = harness::limit_of("step.update");
  EXPECT_TRUE(harness::by_limit("step.update", limit).within());
  EXPECT_FALSE(harness::by_limit("step.update", std::nextafter(limit, 2 * limit)).within());
  EXPECT_FALSE(harness::by_limit("step.update", std::nan("")).within());
}

TEST(SelfLimits, RoundingsAreThoseOfTheDtype) {
  for (const DType dtype : {DType::float64, DType::float32})
    EXPECT_EQ(harness::limit_of("pair.relative", {.dtype = dtype}), 400 * rounding_floor(dtype));
  for (const DType dtype : {DType::bfloat16, DType::float16})
    EXPECT_EQ(harness::limit_of("pair.relative", {.dtype = dtype}), 40 * rounding_floor(dtype));
}

/// The code of the error that a look-up ends in; ok when it finds a row.
ExitCode code_of(const char* check, const Where& where) {
  try {
    harness::limit_of(check, where);
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::ok;
}

TEST(SelfLimits, UnknownCheckIsAnErrorAndNoDefault) {
  EXPECT_EQ(code_of("step.update", {}), ExitCode::ok);
  EXPECT_EQ(code_of("step.updates", {}), ExitCode::internal);
  EXPECT_EQ(code_of("", {}), ExitCode::internal);
}

TEST(SelfLimits, WhatARowDependsOnMustBeTold) {
  EXPECT_EQ(code_of("descent.loss", {}), ExitCode::internal);  // the config
  EXPECT_EQ(code_of("descent.loss", {.config = "tiny"}), ExitCode::ok);
  EXPECT_EQ(code_of("pair.relative", {.config = "tiny"}), ExitCode::internal);  // the dtype
  EXPECT_EQ(code_of("kl.gradient_paths", {}), ExitCode::internal);
  EXPECT_EQ(code_of("band.distance", {}), ExitCode::internal);  // the size of the band
  EXPECT_EQ(code_of("band.distance", {.components = 5, .runs = 5}), ExitCode::internal);
  EXPECT_EQ(code_of("band.distance", {.components = 5, .runs = 64}), ExitCode::ok);
}

}  // namespace
}  // namespace dsv32::suites
