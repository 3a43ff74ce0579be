#pragma once

#include <cmath>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "harness/judge/measure/metrics.h"

/// The parts that the description of a failing tap is made of; structure.cpp puts them together.
/// Each gives one phrase, or "" when it does not explain the error.
namespace dsv32::harness {

/// Judged and oracle values of a failing tap, row by row: all rows, or those with the largest
/// errors.
struct Sample {
  std::vector<const Row*> rows;
  std::vector<std::vector<double>> o, k;  // [rows][lanes]
  double error = 0;                       // squared distance of k from o
  size_t lanes() const { return o.empty() ? 0 : o.front().size(); }
};
Sample take_sample(const Comparison& c, const RowLayout& layout, const TapError& error);

/// Value that a hypothesis gives for one lane of one sampled row.
using Guess = std::function<double(size_t row, size_t lane)>;
/// The guess leaves next to nothing of the error, and what it leaves is small against the values.
bool explains(const Sample& sample, const Guess& guess);

/// Phrases, without the empty ones: "a; b".
std::string joined(std::initializer_list<std::string> phrases);

/// Six digits.
std::string text_of(double value);

/// "" or " = routed_scaling_factor": constants of the config that a gain of this tap may be.
std::string name_constant(const TapName& tap, const ModelConfig& config, double gain, double error);
/// Blocks of rows (heads, latent and rope rows, ...) with gains of their own.
std::string describe_blocks(const Comparison& c, const Sample& sample);

/// Lanes in another order, or with another sign: "halves swapped", "de-interleaved", "transposed".
std::string describe_lanes(const Comparison& c, const Sample& sample);

/// An elementwise function of the right result: "clipped at 1", "rounded to bfloat16", "constant".
std::string describe_values(const Comparison& c, const RowLayout& layout, const Sample& sample);

/// What is wrong with each row by itself: a number of its own, an order of its own.
std::string describe_each_row(const Comparison& c, const Sample& sample);

/// Of attention and index scores: keys that count and are masked, keys that do not count and are
/// seen, and the rule that masks them: "keys 16 tokens and more behind the query".
std::string describe_mask(const Comparison& c, const RowLayout& layout);

/// Of a sum over the ranks: the rank whose summand makes the error, and what is wrong with it. A
/// verdict that no one rank explains is "".
std::string describe_summands(const Comparison& c, const RowLayout& layout);

/// What the failing rows, and no others, have in common.
std::string describe_common(const Comparison& c, const RowLayout& layout, const TapError& error);

}  // namespace dsv32::harness
