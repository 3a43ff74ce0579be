#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "harness/judge/decisions/decisions.h"
#include "src/model/batch.h"
#include "src/model/config.h"
#include "src/model/trace.h"

namespace dsv32::harness {

/// The rows that a legitimate turn of an unknown decision may have moved (docs/architecture.md,
/// weak evidence). A row is exposed from the first decision of its own that may turn, and from the
/// layer after the first key that it sees and that is exposed. Every other row of a correct
/// implementation lies within rounding, whatever it decided.
class Exposure {
 public:
  /// `margins`: of the decisions that are not in the judged trace, by the tap's full name.
  Exposure(const ModelConfig& config, const Batch& batch,
           const std::map<std::string, Margins>& margins);

  /// Some row is exposed somewhere.
  bool any() const { return any_; }
  /// The tap depends on an exposed row. Scalars and gradients are sums over all rows.
  bool touches(const TapName& tap) const;
  /// The batch with the exposed rows of this tap masked, so that they are not judged. Which keys a
  /// row sees must then come from a support of the whole batch.
  Batch without_exposed(const TapName& tap) const;
  /// Judged rows of this tap, and how many of them are exposed.
  struct Share {
    int64_t rows = 0, exposed = 0;
  };
  Share share(const TapName& tap) const;

 private:
  using Rows = std::vector<uint8_t>;  // [B*S] as 0/1
  /// What holds of the rows at the places of one layer.
  struct Layer {
    Rows input, seen, selected, routed;
  };
  Rows spread_to_later_queries(const Rows& keys) const;
  const Rows& rows_of(const TapName& tap) const;

  Batch batch_;
  std::vector<Layer> layers_;
  Rows output_;  // of the last layer
  bool any_ = false;
};

}  // namespace dsv32::harness
