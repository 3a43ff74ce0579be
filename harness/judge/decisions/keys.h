#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "src/model/batch.h"
#include "src/model/config.h"
#include "src/model/tensor.h"

/// Which keys a query sees, attends to and selects.
namespace dsv32::harness {

/// Key t is visible to query s of batch row b.
bool visible(const Batch& batch, int64_t b, int64_t s, int64_t t);
/// Visible keys [B,S,T] as 0/1.
std::vector<uint8_t> visible_keys(const Batch& batch);
/// Attended keys [B,S,T] that follow from a topk tap (sparse) or from visibility (dense mode, and
/// without a tap).
std::vector<uint8_t> attended_keys(const ModelConfig& config, const Batch& batch,
                                   const HostTensor* topk);

/// What one row of a decision [..,slots] holds, without the -1 of unused slots.
std::set<int64_t> picks_of_row(const HostTensor& decision, int64_t row);

}  // namespace dsv32::harness
