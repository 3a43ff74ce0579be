#include "golden/reader/hdf5_file.h"

#include <hdf5.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <utility>

#include "src/io/text.h"

namespace dsv32::golden {

static_assert(sizeof(hid_t) == sizeof(int64_t));

namespace {

constexpr int kMaxRank = 8;
constexpr int64_t kMaxAttributes = 64;
constexpr size_t kMaxTextBytes = size_t{1} << 20;
constexpr size_t kMaxNameBytes = 1024;

/// Process-wide: no error printing, no plugin code, no external links.
void set_policy() {
  static std::once_flag once;
  std::call_once(once, [] {
    H5open();
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    H5PLset_loading_state(0);
    H5Lunregister(H5L_TYPE_EXTERNAL);
  });
}

std::string text_of(hsize_t n) { return std::to_string(static_cast<unsigned long long>(n)); }

Shape shape_of(hid_t space) {
  std::array<hsize_t, H5S_MAX_RANK> dims{};
  const int rank = H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  return Shape(dims.begin(), dims.begin() + std::max(rank, 0));
}

struct NativeType {
  DType dtype;
  hid_t file, memory;
};

/// The number types of docs/formats.md 8.2.
NativeType native_type(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return {dtype, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT};
    case DType::float64:
      return {dtype, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE};
    case DType::int64:
      return {dtype, H5T_STD_I64LE, H5T_NATIVE_INT64};
    case DType::int32:
      return {dtype, H5T_STD_I32LE, H5T_NATIVE_INT32};
    case DType::uint8:
      return {dtype, H5T_STD_U8LE, H5T_NATIVE_UINT8};
    default:
      throw Error(ExitCode::internal, {.where = "golden reader",
                                       .what = "dtype",
                                       .expected = "float32, float64, int64, int32 or uint8",
                                       .got = std::string(to_string(dtype))});
  }
}

}  // namespace

/// An identifier with its close function.
class Hdf5File::Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle(hid_t id, Close close) : id_(id), close_(close) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&&) = delete;
  operator hid_t() const { return id_; }
  bool valid() const { return id_ >= 0; }

 private:
  hid_t id_;
  Close close_;
};

namespace {

[[noreturn]] void refuse(const std::string& where, const std::string& what,
                         const std::string& expected, const std::string& got) {
  io::refuse({.where = where,
              .what = io::printable(what),
              .expected = expected,
              .got = io::printable(got),
              .hint = "docs/formats.md tells the layout; golden/make makes the file"});
}

std::string kind_name(H5O_type_t type) {
  switch (type) {
    case H5O_TYPE_GROUP:
      return "a group";
    case H5O_TYPE_DATASET:
      return "a dataset";
    default:
      return "another object";
  }
}

H5O_type_t kind_of(hid_t object) {
  H5O_info_t info{};
  return H5Oget_info2(object, &info, H5O_INFO_BASIC) < 0 ? H5O_TYPE_UNKNOWN : info.type;
}

void require_hard_link(hid_t file, const std::string& part, const std::string& where) {
  H5L_info_t info{};
  if (H5Lget_info(file, part.c_str(), &info, H5P_DEFAULT) < 0) {
    refuse(where, part, "this object", "none");
  }
  if (info.type == H5L_TYPE_HARD) return;
  refuse(where, part, "a hard link",
         info.type == H5L_TYPE_SOFT       ? "a soft link"
         : info.type == H5L_TYPE_EXTERNAL ? "an external link"
                                          : "a user-defined link");
}

/// Every prefix of "/a/b" that ends in front of a slash or at the end: "/a", "/a/b".
std::vector<std::string> prefixes(const std::string& path) {
  std::vector<std::string> parts;
  for (size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1)) {
    parts.push_back(path.substr(0, slash));
  }
  if (path != "/") parts.push_back(path);
  return parts;
}

void check_type(hid_t dataset_type, const NativeType& native, const std::string& where,
                const std::string& path) {
  if (H5Tcommitted(dataset_type) > 0) refuse(where, path, "a plain type", "a committed type");
  if (H5Tequal(dataset_type, native.file) <= 0) {
    refuse(where, path, "type " + std::string(to_string(native.dtype)), "another type");
  }
}

void check_filters(hid_t properties, const std::string& where, const std::string& path) {
  const int filters = H5Pget_nfilters(properties);
  if (filters < 0 || filters > 3) refuse(where, path, "at most 3 filters", std::to_string(filters));
  for (int i = 0; i < filters; ++i) {
    unsigned flags = 0, values = 0;
    size_t count = 0;
    const H5Z_filter_t filter =
        H5Pget_filter2(properties, i, &flags, &count, nullptr, 0, nullptr, &values);
    const bool allowed = filter == H5Z_FILTER_SHUFFLE || filter == H5Z_FILTER_DEFLATE ||
                         filter == H5Z_FILTER_FLETCHER32;
    if (!allowed) {
      refuse(where, path, "filters shuffle, deflate, fletcher32",
             "filter " + std::to_string(filter));
    }
  }
}

/// One chunk buffer is allocated as large as the file says: it must not be larger than the dataset.
void check_chunks(hid_t properties, const Shape& shape, const std::string& where,
                  const std::string& path) {
  std::array<hsize_t, kMaxRank> chunk{};
  const int rank = H5Pget_chunk(properties, kMaxRank, chunk.data());
  bool fits = rank == static_cast<int>(shape.size());
  for (int i = 0; fits && i < rank; ++i) {
    fits = chunk[i] > 0 && chunk[i] <= static_cast<hsize_t>(shape[i]);
  }
  if (!fits) {
    const Shape got(chunk.begin(), chunk.begin() + std::clamp(rank, 0, kMaxRank));
    refuse(where, path, "chunks within " + to_string(shape), to_string(got));
  }
}

void check_layout(hid_t dataset, hid_t properties, const NativeType& native, const Shape& shape,
                  const std::string& where, const std::string& path) {
  if (H5Pget_external_count(properties) != 0) {
    refuse(where, path, "data inside the file", "external storage");
  }
  check_filters(properties, where, path);
  const H5D_layout_t layout = H5Pget_layout(properties);
  if (layout == H5D_CHUNKED) {
    check_chunks(properties, shape, where, path);
  } else if (layout == H5D_CONTIGUOUS || layout == H5D_COMPACT) {
    const auto bytes = static_cast<hsize_t>(numel(shape) * item_size(native.dtype));
    const hsize_t stored = H5Dget_storage_size(dataset);
    if (stored != bytes) refuse(where, path, text_of(bytes) + " bytes stored", text_of(stored));
  } else {
    refuse(where, path, "a contiguous or chunked layout", "another layout");
  }
}

void check_shape(hid_t space, const Shape& shape, const std::string& where,
                 const std::string& path) {
  const H5S_class_t kind = H5Sget_simple_extent_type(space);
  if (kind != H5S_SIMPLE && kind != H5S_SCALAR) refuse(where, path, to_string(shape), "no data");
  if (shape_of(space) != shape) {
    refuse(where, path, "shape " + to_string(shape), to_string(shape_of(space)));
  }
}

bool is_fixed_text(hid_t type) {
  return H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0 &&
         H5Tcommitted(type) == 0;
}

}  // namespace

Hdf5File::Hdf5File(std::string bytes, std::string where) : where_(std::move(where)) {
  set_policy();
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  constexpr size_t kGrowth = 1 << 16;  // unused: nothing is written
  const bool ready = H5Pset_fapl_core(access, kGrowth, false) >= 0 &&
                     H5Pset_file_image(access, bytes.data(), bytes.size()) >= 0;
  if (!ready) {
    throw Error(ExitCode::environment, {.where = where_,
                                        .what = "memory for the file",
                                        .expected = std::to_string(bytes.size()) + " bytes",
                                        .got = "none"});
  }
  // A name that no file has: the driver refuses to open an image under the name of a real file.
  static int64_t opened = 0;
  const std::string name = "golden-image://" + std::to_string(++opened);
  file_ = H5Fopen(name.c_str(), H5F_ACC_RDONLY, access);
  if (file_ < 0) refuse(where_, "file", "an HDF5 file", "something that HDF5 cannot open");
}

Hdf5File::~Hdf5File() {
  if (file_ >= 0) H5Fclose(file_);
}

Hdf5File::Handle Hdf5File::open(const std::string& path) const {
  for (const std::string& part : prefixes(path)) require_hard_link(file_, part, where_);
  Handle object(H5Oopen(file_, path.c_str(), H5P_DEFAULT), H5Oclose);
  if (!object.valid()) refuse(where_, path, "an object", "something that HDF5 cannot open");
  return object;
}

bool Hdf5File::exists(const std::string& path) const {
  for (const std::string& part : prefixes(path)) {
    if (H5Lexists(file_, part.c_str(), H5P_DEFAULT) <= 0) return false;
  }
  return true;
}

bool Hdf5File::is_group(const std::string& path) const {
  return kind_of(open(path)) == H5O_TYPE_GROUP;
}

int64_t Hdf5File::members(const std::string& path) const {
  const Handle group = open(path);
  if (kind_of(group) != H5O_TYPE_GROUP) refuse(where_, path, "a group", kind_name(kind_of(group)));
  H5G_info_t info{};
  if (H5Gget_info(group, &info) < 0) refuse(where_, path, "a readable group", "a damaged one");
  return static_cast<int64_t>(info.nlinks);
}

std::vector<std::string> Hdf5File::attributes(const std::string& path) const {
  const Handle object = open(path);
  H5O_info_t info{};
  if (H5Oget_info2(object, &info, H5O_INFO_NUM_ATTRS) < 0 ||
      info.num_attrs > static_cast<hsize_t>(kMaxAttributes)) {
    refuse(where_, path, "at most " + std::to_string(kMaxAttributes) + " attributes",
           text_of(info.num_attrs));
  }
  std::vector<std::string> names;
  for (hsize_t i = 0; i < info.num_attrs; ++i) {
    std::array<char, kMaxNameBytes> name{};
    const ssize_t length = H5Aget_name_by_idx(object, ".", H5_INDEX_NAME, H5_ITER_INC, i,
                                              name.data(), name.size(), H5P_DEFAULT);
    if (length < 0 || length >= static_cast<ssize_t>(name.size())) {
      refuse(where_, path, "attribute names that can be read", "attribute " + text_of(i));
    }
    names.emplace_back(name.data());
  }
  return names;
}

std::string Hdf5File::text_attribute(const std::string& path, const std::string& name) const {
  const Handle object = open(path);
  const Handle attribute(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose);
  const std::string what = path + " attribute " + name;
  if (!attribute.valid()) refuse(where_, what, "this attribute", "none");
  const Handle type(H5Aget_type(attribute), H5Tclose);
  const Handle space(H5Aget_space(attribute), H5Sclose);
  if (!is_fixed_text(type)) {
    const std::vector<int64_t> values = integer_attribute(path, name, 1);
    return std::to_string(values.at(0));
  }
  const size_t size = H5Tget_size(type);
  if (H5Sget_simple_extent_type(space) != H5S_SCALAR || size == 0 || size > kMaxTextBytes) {
    refuse(where_, what, "one string of at most 1 MiB", "another shape or size");
  }
  std::string text(size, '\0');
  if (H5Aread(attribute, type, text.data()) < 0) refuse(where_, what, "readable text", "damage");
  text.resize(std::min(text.find('\0'), text.size()));
  return text;
}

std::vector<int64_t> Hdf5File::integer_attribute(const std::string& path, const std::string& name,
                                                 int64_t limit) const {
  const Handle object = open(path);
  const Handle attribute(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose);
  const std::string what = path + " attribute " + name;
  if (!attribute.valid()) refuse(where_, what, "this attribute", "none");
  const Handle type(H5Aget_type(attribute), H5Tclose);
  const Handle space(H5Aget_space(attribute), H5Sclose);
  check_type(type, native_type(DType::int64), where_, what);
  const Shape shape = shape_of(space);
  const bool listed = shape.size() == 1 && shape[0] >= 1 && shape[0] <= limit;
  if (H5Sget_simple_extent_type(space) != H5S_SCALAR && !listed) {
    refuse(where_, what, "1 to " + std::to_string(limit) + " numbers", to_string(shape));
  }
  std::vector<int64_t> values(static_cast<size_t>(shape.empty() ? 1 : shape[0]));
  if (H5Aread(attribute, H5T_NATIVE_INT64, values.data()) < 0) {
    refuse(where_, what, "readable numbers", "damage");
  }
  return values;
}

HostTensor Hdf5File::read(const std::string& path, DType dtype, const Shape& shape) const {
  const NativeType native = native_type(dtype);
  const Handle object = open(path);
  if (kind_of(object) != H5O_TYPE_DATASET)
    refuse(where_, path, "a dataset", kind_name(kind_of(object)));
  const Handle type(H5Dget_type(object), H5Tclose);
  const Handle space(H5Dget_space(object), H5Sclose);
  const Handle properties(H5Dget_create_plist(object), H5Pclose);
  check_type(type, native, where_, path);
  check_shape(space, shape, where_, path);
  check_layout(object, properties, native, shape, where_, path);
  HostTensor tensor(dtype, shape);
  if (H5Dread(object, native.memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, tensor.raw()) < 0) {
    refuse(where_, path, "data that can be read", "damaged data");
  }
  return tensor;
}

}  // namespace dsv32::golden
