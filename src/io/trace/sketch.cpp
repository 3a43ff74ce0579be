#include "src/io/trace/sketch.h"

#include <algorithm>
#include <set>

#include "src/io/text.h"
#include "src/model/sketch.h"

namespace dsv32::io {
namespace {

constexpr int64_t kMaxChosenRows = 4096;
const std::set<std::string> kParts = {"rows", "row_index", "row_norms", "projections"};

/// What a sketch of this tap must look like.
struct Expected {
  Shape shape;      // of the tap
  SketchRows all;   // rows as norms and projections count them
  int64_t indices;  // rows that row_index may name
  int64_t size;     // of a chosen row
};

Expected expected_of(const TapName& tap, const Shape& shape) {
  const SketchRows all = sketch_rows(tap, shape);
  if (tap.info.kind != TapKind::gradient) return {shape, all, all.count, all.size};
  const bool vector = shape.size() < 2;  // a chosen row of a vector is all of it
  return {shape, all, vector ? 1 : shape[0], vector ? all.size : all.size / shape[0]};
}

bool is_row_wise(const TapName& tap) {
  return tap.info.kind == TapKind::token || tap.info.kind == TapKind::key;
}

class Reader {
 public:
  Reader(const SafetensorsFile& file, const Case& c)
      : file_(file), case_(c), where_(file.path().string()) {}

  TapSketch read(const std::string& name, const std::set<std::string>& parts) const {
    const TapName tap = checked_tap(name);
    const Expected expected = expected_of(tap, *shape_of(name));
    for (const char* part : {"rows", "row_index"})
      if (!parts.contains(part))
        wrong(name, part, "this tensor", "none", "a sketch has rows and row_index");
    if (parts.contains("row_norms") != parts.contains("projections"))
      wrong(name, "row_norms", "together with projections", "one of the two");
    TapSketch sketch{.shape = expected.shape};
    sketch.row_index = indices(name, expected);
    const auto kept = static_cast<int64_t>(sketch.row_index.size());
    sketch.rows = floats(name, "rows", {kept, expected.size});
    if (!parts.contains("row_norms")) {
      if (!is_row_wise(tap))
        wrong(name, "row_norms", "this tensor", "none",
              "rows alone are enough for taps of tokens, such as logits");
      return sketch;
    }
    sketch.row_norms = floats(name, "row_norms", {expected.all.count});
    sketch.projections = floats(name, "projections", {expected.all.count, kProjections});
    return sketch;
  }

 private:
  TapName checked_tap(const std::string& name) const {
    const auto tap = parse_tap(name);
    const bool good = tap && !tap->info.is_decision() && tap->info.kind != TapKind::scalar &&
                      tap->info.kind != TapKind::series && shape_of(name);
    if (!good)
      refuse({.where = where_,
              .what = "tensor " + printable(name) + "#rows",
              .expected = "a sketch of a tap that case " + case_.name +
                          " has; decisions and scalars come whole",
              .got = printable(name)});
    if (file_.tensors().contains(name))
      refuse({.where = where_,
              .what = "tensor " + name,
              .expected = "the tap whole or sketched",
              .got = "both"});
    const auto layout = [&](const char* key) {
      const auto it = file_.metadata().find(key);
      return it == file_.metadata().end() ? std::string() : it->second;
    };
    const std::string_view stem = tap->info.name;
    const bool moved =
        ((stem == "q_rope" || stem == "k_rope") && layout("rope_layout") == "deinterleaved") ||
        ((stem == "ix.q" || stem == "ix.k") && layout("index_layout") == "deinterleaved");
    if (moved)
      refuse({.where = where_,
              .what = "tensor " + name + "#projections",
              .expected = "a sketch of the tap in its canonical layout",
              .got = "one of de-interleaved lanes, whose projections cannot be converted"});
    return *tap;
  }

  std::optional<Shape> shape_of(const std::string& name) const {
    const auto tap = parse_tap(name);
    return tap ? tap_shape(*tap, case_.config, case_.B, case_.S) : std::nullopt;
  }

  [[noreturn]] void wrong(const std::string& tap, const std::string& part,
                          const std::string& expected, const std::string& got,
                          const std::string& hint = "") const {
    refuse({.where = where_,
            .what = "tensor " + tap + "#" + part,
            .expected = expected,
            .got = got,
            .hint = hint});
  }

  const TensorEntry& entry(const std::string& tap, const std::string& part) const {
    return file_.tensors().at(tap + "#" + part);
  }

  std::vector<int64_t> indices(const std::string& name, const Expected& expected) const {
    const TensorEntry& stored = entry(name, "row_index");
    if (!stored.readable || stored.dtype != DType::int64)
      wrong(name, "row_index", "I64", std::string(stored.stored));
    if (stored.shape.size() != 1 || stored.shape[0] < 1 || stored.shape[0] > kMaxChosenRows)
      wrong(name, "row_index", "[1.." + std::to_string(kMaxChosenRows) + "]",
            to_string(stored.shape));
    const HostTensor tensor = file_.read(name + "#row_index");
    const auto data = tensor.data<int64_t>();
    int64_t last = -1;
    for (const int64_t row : data) {
      if (row <= last || row >= expected.indices)
        wrong(name, "row_index", "ascending rows below " + std::to_string(expected.indices),
              std::to_string(row));
      last = row;
    }
    return {data.begin(), data.end()};
  }

  std::vector<float> floats(const std::string& tap, const std::string& part,
                            const Shape& shape) const {
    const TensorEntry& stored = entry(tap, part);
    if (!stored.readable || !is_floating(stored.dtype))
      wrong(tap, part, "F32 (or F64, BF16, F16)", std::string(stored.stored));
    if (stored.shape != shape) wrong(tap, part, to_string(shape), to_string(stored.shape));
    const HostTensor tensor = file_.read(tap + "#" + part).cast(DType::float32);
    const auto data = tensor.data<float>();
    return {data.begin(), data.end()};
  }

  const SafetensorsFile& file_;
  const Case& case_;
  const std::string where_;
};

template <typename T>
HostTensor tensor_of(DType dtype, Shape shape, const std::vector<T>& values) {
  HostTensor out(dtype, std::move(shape));
  std::copy(values.begin(), values.end(), out.data<T>().begin());
  return out;
}

}  // namespace

std::optional<SketchPart> sketch_part(const std::string& tensor) {
  const size_t mark = tensor.rfind('#');
  if (mark == std::string::npos) return std::nullopt;
  SketchPart part{tensor.substr(0, mark), tensor.substr(mark + 1)};
  if (!kParts.contains(part.part)) return std::nullopt;
  return part;
}

std::map<std::string, TapSketch> read_sketches(const SafetensorsFile& file, const Case& c) {
  std::map<std::string, std::set<std::string>> parts;
  for (const auto& [name, entry] : file.tensors())
    if (const auto part = sketch_part(name)) parts[part->tap].insert(part->part);
  const Reader reader(file, c);
  std::map<std::string, TapSketch> sketches;
  for (const auto& [tap, there] : parts) sketches[tap] = reader.read(tap, there);
  return sketches;
}

std::map<std::string, HostTensor> sketch_tensors(const std::map<std::string, TapSketch>& sketches) {
  std::map<std::string, HostTensor> out;
  for (const auto& [tap, sketch] : sketches) {
    const auto kept = static_cast<int64_t>(sketch.row_index.size());
    const auto size = static_cast<int64_t>(sketch.rows.size()) / std::max<int64_t>(kept, 1);
    out[tap + "#rows"] = tensor_of(DType::float32, {kept, size}, sketch.rows);
    out[tap + "#row_index"] = tensor_of(DType::int64, {kept}, sketch.row_index);
    if (sketch.rows_only()) continue;
    const auto count = static_cast<int64_t>(sketch.row_norms.size());
    out[tap + "#row_norms"] = tensor_of(DType::float32, {count}, sketch.row_norms);
    out[tap + "#projections"] =
        tensor_of(DType::float32, {count, kProjections}, sketch.projections);
  }
  return out;
}

}  // namespace dsv32::io
