#include "src/model/decoding.h"

#include <algorithm>

#include "src/model/errors.h"

namespace dsv32 {
namespace {

/// Copies the rows of a prompt to the front of longer ones.
std::vector<int64_t> widened(const std::vector<int64_t>& rows, int64_t B, int64_t from,
                             int64_t to) {
  std::vector<int64_t> out(static_cast<size_t>(B * to), 0);
  for (int64_t b = 0; b < B; ++b) std::copy_n(rows.begin() + b * from, from, out.begin() + b * to);
  return out;
}

}  // namespace

History::History(const Batch& prompt, const Decoding& decoding)
    : prompt_(prompt.S),
      decoding_(decoding),
      batch_(prompt),
      emitted_(static_cast<size_t>(prompt.B * decoding.steps), 0),
      counted_(static_cast<size_t>(prompt.B), 0),
      finished_(static_cast<size_t>(prompt.B), false) {
  for (int64_t b = 0; b < prompt.B; ++b) {
    if (prompt.valid(b, prompt.S - 1)) continue;
    throw Error(ExitCode::usage, {.where = "generate",
                                  .what = "row " + std::to_string(b),
                                  .expected = "padding on the left: decoding goes on at the end",
                                  .got = "padding on the right"});
  }
  const int64_t S = prompt.S + decoding.steps - 1;
  batch_.S = S;
  batch_.chunks.clear();
  for (auto* rows : {&batch_.input_ids, &batch_.attention_mask, &batch_.position_ids})
    *rows = widened(*rows, prompt.B, prompt.S, S);
  batch_.labels.assign(static_cast<size_t>(prompt.B * S), kIgnoredLabel);
  for (int64_t b = 0; b < prompt.B; ++b) {
    const int64_t last = prompt.position_ids[b * prompt.S + prompt.S - 1];
    for (int64_t s = prompt.S; s < S; ++s) batch_.position_ids[b * S + s] = last + 1 + s - prompt.S;
  }
  steps_batch_ = batch_;
  steps_batch_.chunks.assign(static_cast<size_t>(decoding.steps), 1);
  steps_batch_.chunks.front() = prompt.S;
  for (int64_t b = 0; b < prompt.B; ++b)
    for (int64_t s = prompt.S; s < S; ++s) steps_batch_.attention_mask[b * S + s] = 1;
}

void History::emit(const std::vector<int64_t>& tokens) {
  const int64_t place = prompt_ + steps_;
  for (int64_t b = 0; b < batch_.B; ++b) {
    const bool done = finished(b);
    const int64_t token = done ? *decoding_.eos : tokens[b];
    emitted_[b * decoding_.steps + steps_] = token;
    if (!done) ++counted_[b];
    finished_[b] = done || (decoding_.eos && token == *decoding_.eos);
    if (place == batch_.S) continue;  // never read
    batch_.input_ids[b * batch_.S + place] = steps_batch_.input_ids[b * batch_.S + place] = token;
    batch_.attention_mask[b * batch_.S + place] = finished(b) ? 0 : 1;
  }
  ++steps_;
}

HostTensor History::tokens() const {
  HostTensor out(DType::int64, {batch_.B, decoding_.steps});
  std::copy(emitted_.begin(), emitted_.end(), out.data<int64_t>().begin());
  return out;
}

}  // namespace dsv32
