#include "golden/reader/generated.h"
#include "golden/reader/golden.h"
#include "golden/reader/hdf5_file.h"
#include "golden/reader/layout.h"
#include "golden/reader/pinned.h"
#include "src/io/io.h"
#include "src/io/text.h"
#include "src/model/sketch.h"

namespace dsv32::golden {
namespace {

constexpr int64_t kMaxChosenRows = 64;

[[noreturn]] void refuse(const std::string& where, const std::string& what,
                         const std::string& expected, const std::string& got) {
  io::refuse({.where = where, .what = what, .expected = expected, .got = io::printable(got)});
}

template <typename T>
std::vector<T> values_of(const HostTensor& tensor) {
  const auto data = tensor.data<T>();
  return std::vector<T>(data.begin(), data.end());
}

/// Reads one golden; the order of the members is the order of the checks.
class Loader {
 public:
  Loader(const Case& c, const ManifestEntry& entry, std::string bytes, const std::string& where)
      : case_(c), entry_(entry), where_(where), file_(std::move(bytes), where) {}

  Golden load() {
    check_root();
    read_attributes();
    read_inputs();
    read_taps();
    fill_metadata();
    return std::move(golden_);
  }

 private:
  void check_root() const {
    require_members("/", 2);
    require_members("/inputs", 4);
  }

  void require_members(const std::string& group, int64_t expected) const {
    const int64_t got = file_.members(group);
    if (got != expected) {
      refuse(where_, "members of " + group, std::to_string(expected), std::to_string(got));
    }
  }

  void read_attributes() {
    for (const std::string& name : file_.attributes("/")) {
      if (name == "rows") {
        chosen_ = file_.integer_attribute("/", name, kMaxChosenRows);
      } else {
        golden_.attributes[name] = file_.text_attribute("/", name);
      }
    }
    check_attributes(golden_, entry_, case_, where_);
    golden_.case_name = entry_.case_name;
    golden_.kind = entry_.kind;
    golden_.dialect = golden_.attributes.at("dialect");
    golden_.dtype = parse_dtype(golden_.attributes.at("dtype"));
    if (is_sketch() && chosen_.empty()) refuse(where_, "attribute rows", "the chosen rows", "none");
  }

  void read_inputs() {
    for (const char* name : {"input_ids", "attention_mask", "position_ids", "labels"}) {
      const std::string path = std::string("/inputs/") + name;
      golden_.inputs[name] = values_of<int64_t>(file_.read(path, DType::int64, {case_.B, case_.S}));
    }
    check_inputs(golden_, case_, where_);
  }

  void read_taps() {
    const std::vector<std::string> names = check_taps(golden_, case_, where_);
    require_members("/taps", static_cast<int64_t>(names.size()));
    for (const std::string& name : names) read_tap(*parse_tap(name));
  }

  void read_tap(const TapName& tap) {
    const std::string path = "/taps/" + tap.full;
    const Shape shape = shape_of_tap(tap, case_);
    const TapKind kind = tap.info.kind;
    if (kind == TapKind::topk && is_sketch()) {
      golden_.trace.put(tap.full, read_bitset(path, shape));
    } else if (tap.info.is_decision()) {
      golden_.trace.put(tap.full, file_.read(path, DType::int32, shape));
    } else if (kind == TapKind::scalar || !is_sketch()) {
      golden_.trace.put(tap.full, file_.read(path, DType::float32, shape));
    } else {
      golden_.sketches[tap.full] = read_sketch(tap, path, shape);
    }
  }

  HostTensor read_bitset(const std::string& path, const Shape& shape) const {
    const std::string encoding = file_.text_attribute(path, "encoding");
    if (encoding != "bitset") refuse(where_, path + " attribute encoding", "bitset", encoding);
    require_shape(path, shape);
    const Shape packed = {case_.B, case_.S, (case_.S + 7) / 8};
    return unpack_topk(file_.read(path, DType::uint8, packed), case_, where_ + ": " + path);
  }

  /// The attribute `shape`: the shape of the full tap.
  void require_shape(const std::string& path, const Shape& shape) const {
    const Shape got = file_.integer_attribute(path, "shape", 8);
    if (got != shape) refuse(where_, path + " attribute shape", to_string(shape), to_string(got));
  }

  SketchedTap read_sketch(const TapName& tap, const std::string& path, const Shape& shape) const {
    const bool gradient = tap.info.kind == TapKind::gradient;
    const SketchRows all = sketch_rows(tap, shape);
    const int64_t row_size = !gradient          ? all.size
                             : shape.size() < 2 ? all.size
                                                : all.size / shape[0];
    const int64_t kept = gradient ? 1 : static_cast<int64_t>(chosen_.size());
    require_shape(path, shape);
    require_members(path, 4);
    SketchedTap sketch;
    sketch.shape = shape;
    sketch.row_index = values_of<int64_t>(file_.read(path + "/row_index", DType::int64, {kept}));
    sketch.rows = floats(path + "/rows", {kept, row_size});
    sketch.row_norms = floats(path + "/row_norms", {all.count});
    sketch.projections = floats(path + "/projections", {all.count, kProjections});
    check_rows(sketch, path, gradient,
               gradient && shape.size() < 2 ? 1
               : gradient                   ? shape[0]
                                            : all.count);
    return sketch;
  }

  std::vector<float> floats(const std::string& path, const Shape& shape) const {
    return values_of<float>(file_.read(path, DType::float32, shape));
  }

  void check_rows(const SketchedTap& sketch, const std::string& path, bool gradient,
                  int64_t count) const {
    const std::string what = path + "/row_index";
    if (!gradient && sketch.row_index != chosen_) {
      refuse(where_, what, to_string(chosen_) + " (attribute rows)", to_string(sketch.row_index));
    }
    int64_t last = -1;
    for (const int64_t row : sketch.row_index) {
      if (row <= last || row >= count) {
        refuse(where_, what, "ascending rows below " + std::to_string(count),
               to_string(sketch.row_index));
      }
      last = row;
    }
  }

  /// As a trace file of the same run would say (docs/formats.md 4).
  void fill_metadata() {
    for (const auto& [name, value] : golden_.attributes) {
      if (name != "taps" && name != "config" && name != "config_sha256")
        golden_.trace.metadata[name] = value;
    }
    golden_.trace.metadata["format"] = "dsv32-verify.trace";
  }

  bool is_sketch() const { return entry_.kind == "sketch"; }

  const Case& case_;
  const ManifestEntry& entry_;
  const std::string where_;
  const Hdf5File file_;
  std::vector<int64_t> chosen_;
  Golden golden_;
};

}  // namespace

Golden load(const std::string& case_name, const std::filesystem::path& directory) {
  const std::lock_guard<std::mutex> lock(hdf5_mutex());
  const std::vector<ManifestEntry> entries = read_manifest(directory);
  const ManifestEntry* entry = find_entry(entries, case_name, false);
  if (entry == nullptr) refuse_unknown(entries, case_name, false);
  const std::filesystem::path path = directory / entry->file;
  if (entry->kind == kGeneratedKind)
    return load_generated(*entry, pinned_bytes(path, *entry), path.string());
  return Loader(io::find_case(case_name), *entry, pinned_bytes(path, *entry), path.string()).load();
}

bool exists(const std::string& case_name, const std::filesystem::path& directory) {
  return is_there(directory, case_name, false);
}

}  // namespace dsv32::golden
