#include "harness/cases/severity.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "harness/judge/decisions/keys.h"

namespace dsv32::harness {
namespace {

bool is_result(const std::string& name) {
  return name == "logits" || name == "loss.lm" || name == "loss.kl" || is_decision(name);
}

int64_t best_of(const HostTensor& logits, int64_t row) {
  const int64_t vocab = logits.shape().back();
  int64_t best = 0;
  for (int64_t v = 1; v < vocab; ++v)
    if (logits.at(row * vocab + v) > logits.at(row * vocab + best)) best = v;
  return best;
}

/// Calls it with every row that is no padding.
template <typename Function>
int64_t for_rows(const Batch& batch, Function&& call) {
  int64_t rows = 0;
  for (int64_t row = 0; row < batch.B * batch.S; ++row) {
    if (!batch.valid(row / batch.S, row % batch.S)) continue;
    ++rows;
    call(row);
  }
  return rows;
}

/// Rows that decide otherwise in any layer.
RowShare other_sets(const Batch& batch, const Trace& a, const Trace& b, const std::string& stem) {
  std::set<int64_t> other;
  RowShare share;
  for (const std::string& name : a.names()) {
    if (tap_stem(name) != stem || !b.has(name)) continue;
    const HostTensor &x = *a.find(name), &y = *b.find(name);
    share.of = for_rows(batch, [&](int64_t row) {
      if (picks_of_row(x, row) != picks_of_row(y, row)) other.insert(row);
    });
  }
  share.rows = static_cast<int64_t>(other.size());
  return share;
}

RowShare other_best(const Batch& batch, const HostTensor& a, const HostTensor& b) {
  RowShare share;
  share.of = for_rows(
      batch, [&](int64_t row) { share.rows += best_of(a, row) != best_of(b, row) ? 1 : 0; });
  return share;
}

double relative(const Batch& batch, const HostTensor& changed, const HostTensor& base) {
  const int64_t length = base.shape().back();
  double distance = 0, norm = 0;
  for_rows(batch, [&](int64_t row) {
    for (int64_t i = row * length; i < (row + 1) * length; ++i) {
      distance += std::pow(changed.at(i) - base.at(i), 2);
      norm += std::pow(base.at(i), 2);
    }
  });
  return norm > 0 ? std::sqrt(distance / norm) : 0;
}

}  // namespace

const Trace& SeverityProbe::base() {
  if (!base_)
    base_ = std::make_unique<Trace>(run_.run(
        {.dtype = DType::float64, .dialect = judged_.dialect, .wanted = is_result}, "severity"));
  return *base_;
}

Severity SeverityProbe::against_base(const Trace& changed) {
  const Batch& batch = run_.batch();
  const char* loss = run_.objective().kl == KlStage::none ? "loss.lm" : "loss.kl";
  const HostTensor &logits = *changed.find("logits"), &right = *base().find("logits");
  return {.logits = relative(batch, logits, right),
          .loss_before = base().find(loss)->at(0),
          .loss_after = changed.find(loss)->at(0),
          .other_top1 = other_best(batch, right, logits),
          .other_keys = run_.the_case().config.use_sparse_attention
                            ? other_sets(batch, base(), changed, "topk")
                            : RowShare{},
          .other_experts = other_sets(batch, base(), changed, "router.experts")};
}

Severity SeverityProbe::of_dialect(const Dialect& dialect, const std::vector<int64_t>& layers) {
  RunOptions options{.dtype = DType::float64, .dialect = judged_.dialect, .wanted = is_result};
  if (layers.empty()) options.dialect = dialect;
  for (const int64_t layer : layers) options.layer_dialects[layer] = dialect;
  return against_base(run_.run(options, "severity"));
}

Severity SeverityProbe::of_taps(const std::vector<std::string>& taps) {
  Trace feed;
  for (const std::string& tap : taps) feed.put(tap, *judged_.trace->find(tap));
  const RunOptions options{.dtype = DType::float64,
                           .dialect = judged_.dialect,
                           .feeding = Feeding::staged,
                           .feed = &feed,
                           .wanted = is_result};
  Trace changed = run_.run(options, "severity");
  for (const std::string& tap : taps)  // what a run makes itself is not what it hands on
    if (is_result(tap)) changed.put(tap, *feed.find(tap));
  return against_base(changed);
}

}  // namespace dsv32::harness
