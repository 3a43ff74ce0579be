#include <cmath>

#include "golden/reader/hdf5_file.h"
#include "golden/reader/layout.h"
#include "golden/reader/pinned.h"
#include "golden/reader/training_golden.h"
#include "golden/reader/training_layout.h"
#include "src/io/io.h"
#include "src/io/text.h"
#include "src/model/sketch.h"

namespace dsv32::golden {
namespace {

constexpr int64_t kMinRuns = 2;
constexpr int64_t kMaxRuns = 100000;

[[noreturn]] void refuse(const std::string& where, const std::string& what,
                         const std::string& expected, const std::string& got) {
  io::refuse({.where = where, .what = what, .expected = expected, .got = io::printable(got)});
}

/// Reads one training golden; the order of the members is the order of the checks.
class TrainingLoader {
 public:
  TrainingLoader(const Case& c, const ManifestEntry& entry, std::string bytes,
                 const std::string& where)
      : case_(c), entry_(entry), where_(where), file_(std::move(bytes), where) {}

  TrainingGolden load() {
    read_attributes();
    check_root();
    read_series();
    for (int64_t step = 0; step < listing_.steps; ++step) read_decisions(step);
    read_parameters();
    if (file_.exists("/band")) golden_.band = read_band();
    for (const ListedTensor& tensor : listing_.tensors) read_tensor(tensor);
    return std::move(golden_);
  }

 private:
  void read_attributes() {
    for (const std::string& name : file_.attributes("/"))
      golden_.attributes[name] = file_.text_attribute("/", name);
    listing_ = check_training(golden_, entry_, case_, where_);
    golden_.name = entry_.case_name;
    golden_.suite = golden_.attributes.at("suite");
    golden_.case_name = case_.name;
    golden_.dialect = golden_.attributes.at("dialect");
    golden_.parameter_names = listing_.parameters;
  }

  /// /series, /decisions, /parameters, and /band and /tensors where there are any.
  void check_root() const {
    const bool tensors = !listing_.tensors.empty(), band = file_.exists("/band");
    require_members("/", 3 + (tensors ? 1 : 0) + (band ? 1 : 0));
    require_members("/series", static_cast<int64_t>(listing_.series.size()));
    require_members("/decisions", listing_.steps);
    require_members("/parameters", 2);
    if (tensors) require_members("/tensors", static_cast<int64_t>(listing_.tensors.size()));
    if (band) require_members("/band", 4);
  }

  void require_members(const std::string& group, int64_t expected) const {
    const int64_t got = file_.members(group);
    if (got != expected)
      refuse(where_, "members of " + group, std::to_string(expected), std::to_string(got));
  }

  void read_series() {
    for (const std::string& name : listing_.series)
      golden_.series[name] = doubles("/series/" + name, {listing_.steps});
  }

  void read_decisions(int64_t step) {
    const std::string group = "/decisions/" + std::to_string(step);
    require_members(group, static_cast<int64_t>(listing_.decisions.size()));
    Trace trace;
    for (const std::string& name : listing_.decisions) {
      const TapName tap = *parse_tap(name);
      const Shape shape = shape_of_tap(tap, case_);
      const std::string path = group + "/" + name;
      trace.put(name, tap.info.kind == TapKind::topk ? read_bitset(path, shape)
                                                     : file_.read(path, DType::int32, shape));
    }
    golden_.decisions.push_back(std::move(trace));
  }

  HostTensor read_bitset(const std::string& path, const Shape& shape) const {
    const std::string encoding = file_.text_attribute(path, "encoding");
    if (encoding != "bitset") refuse(where_, path + " attribute encoding", "bitset", encoding);
    const Shape got = file_.integer_attribute(path, "shape", 8);
    if (got != shape) refuse(where_, path + " attribute shape", to_string(shape), to_string(got));
    const Shape packed = {case_.B, case_.S, (case_.S + 7) / 8};
    return unpack_topk(file_.read(path, DType::uint8, packed), case_, where_ + ": " + path);
  }

  void read_parameters() {
    const auto names = static_cast<int64_t>(listing_.parameters.size());
    golden_.parameter_norms = floats("/parameters/norms", {listing_.steps, names});
    golden_.parameter_projections =
        floats("/parameters/projections", {listing_.steps, names, kParameterProjections});
    for (const float norm : golden_.parameter_norms) {
      if (norm < 0) refuse(where_, "/parameters/norms", "norms", std::to_string(norm));
    }
  }

  Band read_band() const {
    const Shape steps = {listing_.steps};
    Band band;
    band.runs = file_.integer_attribute("/band", "runs", 1).at(0);
    if (band.runs < kMinRuns || band.runs > kMaxRuns)
      refuse(where_, "/band attribute runs", "2 or more runs", std::to_string(band.runs));
    band.mean = doubles("/band/mean", steps);
    band.deviation = doubles("/band/deviation", steps);
    band.components = doubles("/band/components", {kBandComponents, listing_.steps});
    band.variances = doubles("/band/variances", {kBandComponents});
    for (const std::vector<double>* values : {&band.deviation, &band.variances}) {
      for (const double value : *values) {
        if (value < 0) refuse(where_, "/band", "no negative spread", std::to_string(value));
      }
    }
    return band;
  }

  void read_tensor(const ListedTensor& listed) {
    const std::string path = "/tensors/" + listed.name;
    HostTensor tensor = file_.read(path, listed.dtype, listed.shape);
    if (listed.dtype == DType::float32) require_finite(tensor.data<float>(), path);
    golden_.tensors.put(listed.name, std::move(tensor));
  }

  std::vector<double> doubles(const std::string& path, const Shape& shape) const {
    return values<double>(path, DType::float64, shape);
  }
  std::vector<float> floats(const std::string& path, const Shape& shape) const {
    return values<float>(path, DType::float32, shape);
  }
  template <typename T>
  std::vector<T> values(const std::string& path, DType dtype, const Shape& shape) const {
    const HostTensor tensor = file_.read(path, dtype, shape);
    require_finite(tensor.data<T>(), path);
    return std::vector<T>(tensor.data<T>().begin(), tensor.data<T>().end());
  }

  template <typename Values>
  void require_finite(const Values& values, const std::string& path) const {
    for (const auto value : values) {
      if (!std::isfinite(value)) refuse(where_, path, "finite values", std::to_string(value));
    }
  }

  const Case& case_;
  const ManifestEntry& entry_;
  const std::string where_;
  const Hdf5File file_;
  TrainingListing listing_;
  TrainingGolden golden_;
};

}  // namespace

TrainingGolden load_training(const std::string& suite, const std::string& case_name,
                             const std::filesystem::path& directory) {
  const std::lock_guard<std::mutex> lock(hdf5_mutex());
  const std::vector<ManifestEntry> entries = read_manifest(directory);
  const std::string name = suite + "." + case_name;
  const ManifestEntry* entry = find_entry(entries, name, true);
  if (entry == nullptr) refuse_unknown(entries, name, true);
  const std::filesystem::path path = directory / entry->file;
  return TrainingLoader(io::find_case(case_name), *entry, pinned_bytes(path, *entry), path.string())
      .load();
}

bool training_exists(const std::string& suite, const std::string& case_name,
                     const std::filesystem::path& directory) {
  return is_there(directory, suite + "." + case_name, true);
}

}  // namespace dsv32::golden
