#pragma once

#include <string>
#include <vector>

#include "harness/cases/layers/selection.h"
#include "harness/job/job.h"

/// What a streamed run costs (docs/architecture.md 7): one segment of the model after the other.
namespace dsv32::harness {

/// The job judges this case segment by segment: layers were named, or whole traces are larger than
/// any machine's memory is asked for. Depends on the case, never on the machine.
bool is_streamed(const Job& job, const Case& c);

/// Its named layers go back too; without names nothing does.
bool goes_back(const Job& job);

/// Passes of a job's sides over a segment, by what they compute in.
struct Passes {
  double oracle = 0;      // float64
  double plain = 0;       // float32 and 16 bits
  double sequential = 0;  // twins
};

/// The cost of one segment.
struct SegmentWork {
  Segment segment;
  double weights = 0;  // elements that a pass reads
  double taps = 0;     // elements that a trace keeps
  double flops = 0;    // of one pass
  double bytes = 0;    // of memory, at the peak
  double disk = 0;     // bytes that wait in the folder for temporary files
  double seconds = 0;  // roughly, on this machine
  bool backward = false;
  Passes passes = {};
};
struct StreamingWork {
  std::vector<SegmentWork> segments;

  double bytes() const;
  double disk() const;
  double flops() const;
  double seconds() const;
};
/// Throws Error (usage) for words of --layers that the config does not have.
StreamingWork streaming_work(const Job& job, const Case& c);
/// Throws Error (environment) when memory, or the disk of the temporary files, has not enough room.
void refuse_streaming_that_does_not_fit(const Case& c, const Job& job);
/// One line per segment, and their sum.
std::string streaming_table(const StreamingWork& work);

}  // namespace dsv32::harness
