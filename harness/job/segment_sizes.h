#pragma once

#include <string>

#include "src/model/case.h"
#include "src/model/segment.h"

/// How much there is of a segment, for the estimate of a streamed run.
namespace dsv32::harness {

inline constexpr double kOracleBytes = 8, kPlainBytes = 4;  // an element in float64, in float32

double count(const Shape& shape);
/// Elements of a tap that a trace keeps.
double tap_elements(const Case& c, const std::string& name);
/// Elements of one expert's three matrices.
double expert_elements(const ModelConfig& config);
bool has_experts(const Case& c, const Segment& segment);
/// Elements that a pass reads.
double segment_weights(const Case& c, const Segment& segment);
/// Products of queries with keys and of probabilities with values, in FLOP.
double attention_flops(const Case& c);
/// Of one forward pass.
double segment_flops(const Case& c, const Segment& segment);

}  // namespace dsv32::harness
