#include "harness/job/streaming.h"

#include <algorithm>
#include <cstdio>

#include "harness/cases/implementations.h"
#include "harness/cases/layers/run.h"
#include "harness/job/backward_work.h"
#include "harness/job/estimate.h"
#include "harness/job/memory.h"
#include "harness/job/segment_sizes.h"
#include "src/io/file.h"
#include "src/io/scratch.h"
#include "src/io/volume/read_ahead.h"
#include "src/model/trace.h"

namespace dsv32::harness {
namespace {

constexpr double kWholeBytes = 24 * kGiB;  // traces of a case that are held whole
// Rates that are assumed, not measured: a full-size run was not timed yet.
constexpr double kOracleRate = 35e9, kPlainRate = 90e9, kSequentialRate = 25e9;  // FLOP/s, a core
constexpr double kWeightRate = 0.5e9;     // weights made and converted, per second and core
constexpr double kJudgingRate = 50e6;     // gradient elements compared and stepped, per second
constexpr double kProgram = 0.5 * kGiB;   // code and libraries
constexpr double kWaiting = 0.75 * kGiB;  // free blocks that are kept for the next of their size
constexpr double kAttentionCopies = 4, kScoreCopies = 5, kInnerCopies = 4;
constexpr double kAttentionStreams = 3, kStreamCopies = 8;
constexpr double kExpertsAtOnce = 8, kExpertCopies = 2;

/// Bytes that the oracle's pass over an attention works on: its operands are whole, its rows go in
/// blocks. Large matrices are there one by one, in float32.
double attention_bytes(const Case& c, const Segment& segment) {
  const ModelConfig& config = c.config;
  const double tokens = count({c.B, c.S}), width = static_cast<double>(config.hidden_size);
  const double heads = static_cast<double>(config.num_attention_heads);
  const double nope = static_cast<double>(config.qk_nope_head_dim);
  const double v = static_cast<double>(config.v_head_dim);
  const double operands = 2 * static_cast<double>(config.qk_head_dim()) + nope + v;
  const double out = width * heads * v;  // o_proj, the largest
  const double block =
      count({c.B, config.num_attention_heads, queries_at_once(config, c.B, c.S), c.S});
  const double rows = kAttentionCopies * block + tokens * heads * v;
  const double scores = kScoreCopies * count({c.B, c.S, c.S});
  return kOracleBytes * (kAttentionStreams * tokens * width + tokens * heads * operands +
                         segment_weights(c, segment) - out + std::max(rows, scores)) +
         kPlainBytes * out;
}

double mlp_bytes(const Case& c, const Segment& segment) {
  const ModelConfig& config = c.config;
  const double tokens = count({c.B, c.S}),
               stream = tokens * static_cast<double>(config.hidden_size);
  const double weights = segment_weights(c, segment);
  if (!has_experts(c, segment)) {
    const double values = kAttentionStreams * stream +
                          kInnerCopies * tokens * static_cast<double>(config.intermediate_size);
    const double matrix = weights / 3;
    return std::max(kOracleBytes * values + kPlainBytes * matrix, kPlainBytes * (values + weights));
  }
  const double expert = expert_elements(config);
  const double rest = weights - static_cast<double>(config.n_routed_experts) * expert;
  const double values = kStreamCopies * stream + rest;
  return std::max(kOracleBytes * (kExpertCopies * expert + values),
                  kPlainBytes * (kExpertsAtOnce * expert + values));
}

/// Bytes that the oracle's pass works on beside its taps.
double working_bytes(const Case& c, const Segment& segment) {
  const ModelConfig& config = c.config;
  const double tokens = count({c.B, c.S}), width = static_cast<double>(config.hidden_size);
  const double stream = kStreamCopies * tokens * width;
  const double weights = segment_weights(c, segment);
  switch (segment.kind) {
    case SegmentKind::embed:
      return kOracleBytes * stream;
    case SegmentKind::attention:
      return attention_bytes(c, segment);
    case SegmentKind::mlp:
      return mlp_bytes(c, segment);
    case SegmentKind::head:
      break;
  }
  const double kept = count(
      {c.B, static_cast<int64_t>(kept_logit_rows(config, c.B, c.S).size()), config.vocab_size});
  const double block = static_cast<double>(std::min(kVocabularyBlock, config.vocab_size));
  return std::max(kOracleBytes * (2 * kept + block * (width + kInnerCopies * tokens)),
                  kPlainBytes * (weights + 2 * kept)) +
         kOracleBytes * stream;
}

bool asked(const Job& job, const char* suite) {
  return std::find(job.suites.begin(), job.suites.end(), suite) != job.suites.end();
}

bool judges_forward(const Job& job) { return asked(job, "forward") || !goes_back(job); }

/// Of a forward pass whose taps are judged.
Passes judged_passes(const Job& job, const Case& c) {
  Passes passes{.oracle = 1, .plain = 2};  // oracle; the leading run and the probe
  const double twin = affords_twins(c) ? 1 : 0;
  for (const DType dtype : job.dtypes) {
    bool measured = false;
    for (const std::string& impl : job.impls) {
      if (!cannot_run(impl, c.config, dtype, job.device).empty()) continue;
      passes.oracle += 1;  // staged
      passes.plain += 1;
      if (party_of(impl) == Party::reference) continue;
      passes.plain += 2;  // itself, the staged reference
      passes.sequential += twin;
      measured = true;
    }
    if (dtype != DType::float32) passes.plain += 1;
    if (measured) passes.sequential += twin;
  }
  return passes;
}

/// Of a pass end to end alone: forward for its stream, or backward.
Passes end_to_end_passes(const Job& job, const Case& c, bool backward) {
  Passes passes{.oracle = 1, .plain = backward ? 1.0 : 2.0};  // the probe, the leading run
  const double twin = affords_twins(c) ? 1 : 0;
  for (const DType dtype : job.dtypes) {
    if (dtype == DType::fp8) continue;
    bool measured = false;
    for (const std::string& impl : job.impls) {
      const bool own = party_of(impl) != Party::reference &&
                       cannot_run(impl, c.config, dtype, job.device).empty();
      passes.plain += own ? 1 : 0;
      measured = measured || own;
    }
    if (backward || dtype != DType::float32) passes.plain += 1;  // the reference
    if (measured) passes.sequential += twin;
  }
  return passes;
}

double seconds_of(const SegmentWork& one) {
  const Passes& p = one.passes;
  return (one.flops *
              (p.oracle / kOracleRate + p.plain / kPlainRate + p.sequential / kSequentialRate) +
          one.weights * (p.oracle + p.plain + p.sequential) / kWeightRate) /
         machine_cores();
}

/// Where the bytes of tensors are between passes: large ones wait on disk.
struct Stored {
  double memory = 0, disk = 0;

  void add(double elements, double item_size, double count) {
    const double bytes = elements * item_size;
    (bytes < static_cast<double>(io::kScratchBytes) ? memory : disk) += bytes * count;
  }
};

/// Taps of the oracle, of the leading run and of each subject, and every side's stream. The runs
/// that others are measured with are measured tap by tap and dropped.
Stored stored(const Job& job, const Case& c, const Segment& segment) {
  const double subjects = static_cast<double>(job.impls.size() * job.dtypes.size());
  const double stream = count({c.B, c.S, c.config.hidden_size});
  const double oracles = 1 + subjects, others = 3 + 4 * subjects;
  Stored sum;
  sum.add(stream, kOracleBytes, oracles);
  sum.add(stream, kPlainBytes, others);
  for (const std::string& tap : segment_taps(c.config, segment)) {
    sum.add(tap_elements(c, tap), kOracleBytes, 1);
    sum.add(tap_elements(c, tap), kPlainBytes, 1 + subjects);
  }
  return sum;
}

/// Bytes of a checkpoint's files that are held because they were read ahead.
double ahead_bytes(const Job& job, double weights) {
  constexpr double kStoredBytes = 4, kSegments = 2;  // float32 at the most; this one and the next
  if (job.weights.starts_with("synthetic")) return 0;
  return std::min(static_cast<double>(io::kReadAheadBytes), kSegments * kStoredBytes * weights);
}

/// Of a run that goes back: every side's streams before `waiting` segments, its gradient, what
/// experts have handed back; the gradients of oracle, reference and one subject.
Stored stored_backward(const Job& job, const Case& c, const Segment& segment, double waiting) {
  const double subjects = static_cast<double>(job.impls.size() * job.dtypes.size());
  const double stream = count({c.B, c.S, c.config.hidden_size});
  const double streams = waiting + 2;
  Stored sum;
  sum.add(stream, kOracleBytes, streams);
  sum.add(stream, kPlainBytes, streams * (2 + 2 * subjects));
  const double gradients = gradients_together(c, segment);
  sum.add(gradients, kOracleBytes, 1);
  sum.add(gradients, kPlainBytes, 2);
  return sum;
}

SegmentWork forward_work(const Job& job, const Case& c, const Segment& segment, bool ends) {
  SegmentWork one{.segment = segment,
                  .weights = segment_weights(c, segment),
                  .flops = segment_flops(c, segment)};
  const bool judged = judges_forward(job);
  if (judged) {
    one.passes = judged_passes(job, c);
  } else {  // nobody goes on from the end
    one.passes = ends ? Passes{.plain = 1} : end_to_end_passes(job, c, false);
  }
  for (const std::string& tap : segment_taps(c.config, segment))
    one.taps += judged ? tap_elements(c, tap) : 0;
  const Stored between = stored(job, c, segment);
  const double working = working_bytes(c, segment);
  one.bytes = kProgram + between.memory + working + std::min(working, kWaiting) +
              ahead_bytes(job, one.weights);
  one.disk = between.disk;
  one.seconds = seconds_of(one);
  return one;
}

SegmentWork backward_work(const Job& job, const Case& c, const Segment& segment, double waiting) {
  SegmentWork one{.segment = segment,
                  .weights = segment_weights(c, segment),
                  .flops = backward_flops(c, segment),
                  .backward = true,
                  .passes = end_to_end_passes(job, c, true)};
  const Stored between = stored_backward(job, c, segment, waiting);
  const double working = backward_bytes(c, segment);
  one.bytes = kProgram + between.memory + working + std::min(working, kWaiting);
  one.disk = between.disk;
  const double runs = one.passes.oracle + one.passes.plain + one.passes.sequential;
  one.seconds = seconds_of(one) + one.weights * runs / kJudgingRate;
  return one;
}

std::string row(const std::string& name, const SegmentWork& w) {
  char text[160];
  std::snprintf(text, sizeof text, "%-24s %10.3g %10.3g %10.3g %9.1f %9.1f %9.0f\n", name.c_str(),
                w.weights, w.taps, w.flops / 1e12, w.bytes / kGiB, w.disk / kGiB, w.seconds);
  return text;
}

std::string table(const StreamingWork& work) {
  char head[160];
  std::snprintf(head, sizeof head, "%-24s %10s %10s %10s %9s %9s %9s\n", "segment", "weights",
                "taps", "TFLOP/pass", "peak GiB", "disk GiB", "seconds");
  std::string text = head;
  SegmentWork sum;
  for (const SegmentWork& w : work.segments) {
    text += row(to_string(w.segment) + (w.backward ? " backward" : ""), w);
    sum.weights += w.weights, sum.taps += w.taps, sum.flops += w.flops, sum.seconds += w.seconds;
    sum.bytes = std::max(sum.bytes, w.bytes);
    sum.disk = std::max(sum.disk, w.disk);
  }
  return text + row("all", sum);
}

std::string passes_text(const SegmentWork& one) {
  const Passes& passes = one.passes;
  char text[160];
  std::snprintf(text, sizeof text,
                "%spasses over each segment: %.0f in float64, %.0f in float32 or 16 bits, %.0f "
                "with sequential sums\n",
                one.backward ? "backward " : "", passes.oracle, passes.plain, passes.sequential);
  return text;
}

}  // namespace

bool is_streamed(const Job& job, const Case& c) {
  return job.candidates.empty() && (!job.layers.empty() || whole_bytes(c) > kWholeBytes);
}

bool goes_back(const Job& job) { return !job.layers.empty() && asked(job, "backward"); }

double StreamingWork::bytes() const {
  double most = 0;
  for (const SegmentWork& segment : segments) most = std::max(most, segment.bytes);
  return most;
}

double StreamingWork::disk() const {
  double most = 0;
  for (const SegmentWork& segment : segments) most = std::max(most, segment.disk);
  return most;
}

double StreamingWork::flops() const {
  double sum = 0;
  for (const SegmentWork& segment : segments)
    sum +=
        segment.flops * (segment.passes.oracle + segment.passes.plain + segment.passes.sequential);
  return sum;
}

double StreamingWork::seconds() const {
  double sum = 0;
  for (const SegmentWork& segment : segments) sum += segment.seconds;
  return sum;
}

StreamingWork streaming_work(const Job& job, const Case& c) {
  const LayerSelection selection =
      job.layers.empty() ? every_layer(c.config) : parse_layers(job.layers, c.config);
  StreamingWork work;
  for (const SegmentChain& chain : chains_of(selection, c.config)) {
    for (const Segment& segment : chain.segments)
      work.segments.push_back(forward_work(job, c, segment, segment == chain.segments.back()));
    if (!goes_back(job)) continue;
    const double waiting = static_cast<double>(chain.segments.size());
    for (auto segment = chain.segments.rbegin(); segment != chain.segments.rend(); ++segment)
      work.segments.push_back(backward_work(job, c, *segment, waiting));
  }
  return work;
}

void refuse_streaming_that_does_not_fit(const Case& c, const Job& job) {
  const StreamingWork work = streaming_work(job, c);
  refuse_what_does_not_fit(c, work.bytes(), "one segment is held at a time");
  io::require_space(io::scratch_folder(), static_cast<uint64_t>(work.disk()));
}

std::string streaming_table(const StreamingWork& work) {
  std::string text;
  const SegmentWork* said = nullptr;
  for (const SegmentWork& one : work.segments) {
    if (said == nullptr || one.backward != said->backward) text += passes_text(one);
    said = &one;
    if (one.backward) break;
  }
  return text + table(work);
}

}  // namespace dsv32::harness
