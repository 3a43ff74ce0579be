#include "harness/cases/probe.h"

#include <cmath>
#include <vector>

#include "harness/judge/comparison.h"

namespace dsv32::harness {
namespace {

/// Far positions make angles so large that a probe of the usual size turns them round and round:
/// there it is a small one in float64, drawn out afterwards.
bool takes_fine_probe(const Case& c) { return c.position_offset > 0; }
constexpr double kFineProbe = 1.0 / (int64_t{1} << 36);

}  // namespace

RunOptions probe_options(const Case& c, RunOptions options) {
  const bool fine = takes_fine_probe(c);
  options.dtype = fine ? DType::float64 : DType::float32;
  options.perturbation = fine ? kFineProbe : kProbePerturbation;
  return options;
}

Trace drawn_out(const Case& c, Trace probe, const Trace& oracle) {
  if (!takes_fine_probe(c)) return probe;
  for (auto& [name, distance] : probe.distances) {
    for (double& row : distance.rows) row *= kProbePerturbation / kFineProbe;
    for (double& lane : distance.lanes) lane *= kProbePerturbation / kFineProbe;
  }
  const auto drawn = [](const HostTensor& small, const HostTensor& from) {
    std::vector<double> values = from.to_doubles();
    for (size_t i = 0; i < values.size(); ++i) {
      const double moved = small.at(static_cast<int64_t>(i)) - values[i];
      if (std::isfinite(moved)) values[i] += moved * (kProbePerturbation / kFineProbe);
    }
    return HostTensor::from_doubles(DType::float64, small.shape(), values);
  };
  for (const std::string& name : oracle.names()) {
    const HostTensor* small = probe.find(name);
    if (small != nullptr && is_floating(small->dtype()))
      probe.put(name, drawn(*small, *oracle.find(name)));
  }
  for (auto& [name, small] : probe.slopes)
    if (oracle.slopes.contains(name)) small = drawn(small, oracle.slopes.at(name));
  return probe;
}

}  // namespace dsv32::harness
