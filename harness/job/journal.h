#pragma once

#include <chrono>
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "harness/cases/layers/run.h"

namespace dsv32::harness {

/// The file CASE.journal of a streamed run: its verdicts so far and every side's residual stream.
/// Written anew after each layer, and there under its name only when complete, so that a kill at
/// any moment leaves the journal of the layer before.
class Journal {
 public:
  /// `made_with`: what another run must have alike to go on: command, program, weights, case.
  Journal(const std::filesystem::path& folder, const std::string& case_name,
          std::map<std::string, std::string> made_with);

  /// What an earlier run left. Throws Error (usage) when there is none, or when it was made with
  /// something else, which is named.
  LayerProgress read() const;
  /// `all`: the segments of the run; behind the last one no stream is kept.
  void write(const LayerProgress& progress, size_t all) const;

 private:
  std::filesystem::path path_;
  std::map<std::string, std::string> made_with_;
};

/// The file heartbeat.json: where a run stands, for monitors. Rewritten once a minute, and after
/// each segment.
class Heartbeat {
 public:
  Heartbeat(const std::filesystem::path& folder, std::string case_name);
  /// Now doing `what`. Cheap: writes when a minute has passed.
  void beat(const std::string& what);
  void finished(const SegmentCost& cost);

 private:
  void write();

  using Clock = std::chrono::steady_clock;
  std::filesystem::path path_;
  std::string case_name_, what_;
  size_t done_ = 0, of_ = 0, first_ = 0;
  Clock::time_point start_ = Clock::now(), written_ = {};
};

}  // namespace dsv32::harness
