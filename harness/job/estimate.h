#pragma once

#include <string>
#include <vector>

#include "src/model/case.h"
#include "src/model/tensor.h"
#include "src/model/weights.h"

/// What a case costs, from its config alone and before anything is made. All numbers are doubles: a
/// config of a stranger may ask for more than an integer holds.
namespace dsv32::harness {

/// Sizes of a case, of one forward pass.
struct Work {
  double weights = 0;    // elements of the whole model
  double layer = 0;      // elements of the largest layer's weights, or of embedding and head
  double taps = 0;       // elements of every tap that a trace keeps
  double attention = 0;  // elements of one layer's attention matrix
  double flops = 0;
};
Work work_of(const Case& c);

/// What a job or a command needs.
struct Estimate {
  double bytes = 0;    // at its peak
  double flops = 0;    // over all passes
  double seconds = 0;  // where it is known better than from flops, else 0
};
/// Judging of one case: `judged` sides beside the oracle.
Estimate judging_estimate(const Case& c, double judged, bool forward, bool backward);
/// A training suite on one of its cases.
Estimate training_estimate(const Case& c);
/// One implementation's trace, as `dump` makes it in this mode.
Estimate estimate_of_dump(const Case& c, DType dtype, const std::string& mode);

/// A checkpoint, as `weights make` writes it; `only`: of these tensors, empty: of all.
Estimate estimate_of_weights(const Case& c, const std::vector<WeightSpec>& only = {});

/// Rough seconds on the cores of this machine.
double expected_seconds(const Estimate& estimate);
/// "about 3 min on 2 cores (13 TFLOP), up to 9.1 GiB of memory".
std::string described(const Estimate& estimate);
/// Cores of this machine, 1 or more.
double machine_cores();
/// "estimate: about 3 min on 2 cores (13 TFLOP), up to 9.1 GiB of memory"; empty for what takes a
/// few seconds.
std::string announcement(const Estimate& estimate);

/// Throws Error (environment) when judging the case, or making its trace, takes more memory than
/// this process can get. `how`: what is held, for the hint.
void refuse_what_does_not_fit(const Case& c, double bytes,
                              const std::string& how = "traces are held whole in this version");
/// The peak of judging one case end to end.
double judging_bytes(const Case& c, bool backward);
/// What the traces of a forward run take, in memory and on disk.
double whole_bytes(const Case& c);

/// Throws Error (artefact) when a file that nobody vouches for asks for more than a few times the
/// work of the case `small`.
void refuse_large_work(const Case& c, const std::string& path);

}  // namespace dsv32::harness
