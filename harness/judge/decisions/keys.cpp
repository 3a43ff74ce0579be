#include "harness/judge/decisions/keys.h"

namespace dsv32::harness {

bool visible(const Batch& batch, int64_t b, int64_t s, int64_t t) {
  return t <= s && batch.valid(b, t);
}

std::vector<uint8_t> visible_keys(const Batch& batch) {
  const int64_t T = batch.S;
  std::vector<uint8_t> keys(batch.B * batch.S * T);
  for (int64_t b = 0; b < batch.B; ++b)
    for (int64_t s = 0; s < batch.S; ++s)
      for (int64_t t = 0; t < T; ++t) keys[(b * batch.S + s) * T + t] = visible(batch, b, s, t);
  return keys;
}

std::vector<uint8_t> attended_keys(const ModelConfig& config, const Batch& batch,
                                   const HostTensor* topk) {
  if (!config.use_sparse_attention || topk == nullptr) return visible_keys(batch);
  const int64_t T = batch.S;
  const int64_t slots = topk->shape().back();
  std::vector<uint8_t> keys(batch.B * batch.S * T);
  for (int64_t row = 0; row < batch.B * batch.S; ++row)
    for (int64_t i = 0; i < slots; ++i) {
      const int64_t t = static_cast<int64_t>(topk->at(row * slots + i));
      if (t < 0 || t >= T) continue;
      keys[row * T + t] = visible(batch, row / batch.S, row % batch.S, t);
    }
  return keys;
}

std::set<int64_t> picks_of_row(const HostTensor& decision, int64_t row) {
  const int64_t slots = decision.shape().back();
  std::set<int64_t> picks;
  for (int64_t i = 0; i < slots; ++i)
    picks.insert(static_cast<int64_t>(decision.at(row * slots + i)));
  picks.erase(-1);
  return picks;
}

}  // namespace dsv32::harness
