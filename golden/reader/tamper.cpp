#include "golden/reader/tamper.h"

#include <hdf5.h>

#include <limits>
#include <stdexcept>

namespace dsv32::golden {
namespace {

namespace fs = std::filesystem;
constexpr const char* kTap = "/taps/embed";

hid_t checked(hid_t id) {
  if (id < 0) throw std::runtime_error("tampering failed: the golden is not as expected");
  return id;
}

/// Opens a file for writing, applies one change, closes it.
template <typename Change>
std::function<void(const fs::path&)> change(Change&& apply) {
  return [apply](const fs::path& path) {
    const hid_t file = checked(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT));
    apply(file);
    H5Fclose(file);
  };
}

void remove(hid_t file, const char* path) { checked(H5Ldelete(file, path, H5P_DEFAULT)); }

/// A dataset of this type, shape and creation properties (consumed) in the place of another.
void replace(hid_t file, hid_t type, std::vector<hsize_t> dims, hid_t properties,
             const char* path = kTap) {
  remove(file, path);
  const hid_t space =
      checked(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr));
  const hid_t access = H5P_DEFAULT;
  const hid_t dataset =
      checked(H5Dcreate2(file, path, type, space, H5P_DEFAULT, properties, access));
  H5Dclose(dataset);
  H5Sclose(space);
}

hid_t plain() { return H5Pcreate(H5P_DATASET_CREATE); }

/// Space is allocated as it would be for real data.
hid_t allocated() {
  const hid_t properties = plain();
  H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY);
  return properties;
}

hid_t chunked(std::vector<hsize_t> chunk) {
  const hid_t properties = plain();
  checked(H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data()));
  return properties;
}

hid_t nbit() {
  const hid_t properties = chunked({2, 7, 64});
  checked(H5Pset_nbit(properties));
  return properties;
}

hid_t external() {
  const hid_t properties = plain();
  checked(H5Pset_external(properties, "/etc/passwd", 0, H5F_UNLIMITED));
  return properties;
}

hid_t virtual_layout() {
  const hid_t properties = plain();
  const hsize_t dims[] = {2, 7, 64};
  const hid_t space = H5Screate_simple(3, dims, nullptr);
  checked(H5Pset_virtual(properties, space, "other.h5", "/data", space));
  H5Sclose(space);
  return properties;
}

hid_t compound() {
  const hid_t type = H5Tcreate(H5T_COMPOUND, 4);
  checked(H5Tinsert(type, "x", 0, H5T_IEEE_F32LE));
  return type;
}

hid_t variable_text() {
  const hid_t type = H5Tcopy(H5T_C_S1);
  checked(H5Tset_size(type, H5T_VARIABLE));
  return type;
}

void write_text(hid_t file, const char* name, const std::string& value) {
  checked(H5Adelete(file, name));
  const hid_t type = H5Tcopy(H5T_C_S1);
  checked(H5Tset_size(type, value.size()));
  const hid_t space = H5Screate(H5S_SCALAR);
  const hid_t attribute = checked(H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT));
  checked(H5Awrite(attribute, type, value.data()));
  H5Aclose(attribute);
  H5Sclose(space);
  H5Tclose(type);
}

void write_variable_text(hid_t file, const char* name) {
  checked(H5Adelete(file, name));
  const hid_t space = H5Screate(H5S_SCALAR), type = variable_text();
  const hid_t attribute = checked(H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT));
  const char* value = "hf";
  checked(H5Awrite(attribute, type, &value));
  H5Aclose(attribute);
  H5Tclose(type);
  H5Sclose(space);
}

std::string read_text(hid_t file, const char* name) {
  const hid_t attribute = checked(H5Aopen(file, name, H5P_DEFAULT));
  const hid_t type = checked(H5Aget_type(attribute));
  std::string text(H5Tget_size(type), '\0');
  checked(H5Aread(attribute, type, text.data()));
  H5Tclose(type);
  H5Aclose(attribute);
  return text;
}

/// Lists one more tap, of a layer that the model does not have.
void list_foreign_tap(hid_t file) {
  write_text(file, "taps", "[\"layers.9.hidden\"," + read_text(file, "taps").substr(1));
}

void flip_first_token(hid_t file) {
  const hid_t dataset = checked(H5Dopen2(file, "/inputs/input_ids", H5P_DEFAULT));
  int64_t ids[14];
  checked(H5Dread(dataset, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, ids));
  ids[0] += 1;
  checked(H5Dwrite(dataset, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, ids));
  H5Dclose(dataset);
}

void link_to_root(hid_t file) {
  remove(file, kTap);
  checked(H5Lcreate_hard(file, "/", file, kTap, H5P_DEFAULT, H5P_DEFAULT));
}

void soft_link(hid_t file) {
  remove(file, kTap);
  checked(H5Lcreate_soft("/inputs/labels", file, kTap, H5P_DEFAULT, H5P_DEFAULT));
}

hid_t never_followed(const char*, hid_t, const void*, size_t, hid_t, hid_t) { return -1; }

/// The reader takes the class of external links out of the library, for the whole process; to make
/// such a link a class of the same number stands in for a moment. Its value: one byte of flags,
/// file, object.
void link_outside(hid_t file, const char* path) {
  constexpr char kValue[] = "\0other.h5\0/x";
  H5L_class_t stand_in{};
  stand_in.version = H5L_LINK_CLASS_T_VERS;
  stand_in.id = H5L_TYPE_EXTERNAL;
  stand_in.comment = "external";
  stand_in.trav_func = never_followed;
  remove(file, path);
  checked(H5Lregister(&stand_in));
  checked(
      H5Lcreate_ud(file, path, H5L_TYPE_EXTERNAL, kValue, sizeof kValue, H5P_DEFAULT, H5P_DEFAULT));
  checked(H5Lunregister(H5L_TYPE_EXTERNAL));
}

void external_link(hid_t file) { link_outside(file, kTap); }

void external_group_link(hid_t file) { link_outside(file, "/inputs"); }

void extra_tap(hid_t file) {
  checked(H5Lcreate_hard(file, kTap, file, "/taps/layers.9.hidden", H5P_DEFAULT, H5P_DEFAULT));
}

std::vector<Damage> make_damages() {
  const std::vector<hsize_t> dims = {2, 7, 64};  // embed of tiny-short7
  return {
      {"missing tap", "expected this object", change([](hid_t f) {
         checked(H5Lmove(f, kTap, f, "/taps/embedding", H5P_DEFAULT, H5P_DEFAULT));
       })},
      {"fewer taps than listed", "members of /taps", change([](hid_t f) { remove(f, kTap); })},
      {"unlisted tap", "members of /taps", change(extra_tap)},
      {"wrong shape", "shape [2,7,64]", change([](hid_t f) {
         replace(f, H5T_IEEE_F32LE, {2, 7, 63}, allocated());
       })},
      {"wrong rank", "shape [2,7,64]", change([](hid_t f) {
         replace(f, H5T_IEEE_F32LE, {14, 64}, allocated());
       })},
      {"claims a tebibyte", "shape [2,7,64]",
       change([](hid_t f) { replace(f, H5T_IEEE_F32LE, {hsize_t{1} << 38}, chunked({1024})); })},
      {"no data stored", "bytes stored",
       change([dims](hid_t f) { replace(f, H5T_IEEE_F32LE, dims, plain()); })},
      {"float64", "type float32",
       change([dims](hid_t f) { replace(f, H5T_IEEE_F64LE, dims, allocated()); })},
      {"big endian", "type float32",
       change([dims](hid_t f) { replace(f, H5T_IEEE_F32BE, dims, allocated()); })},
      {"compound", "type float32",
       change([dims](hid_t f) { replace(f, compound(), dims, allocated()); })},
      {"variable length", "type float32",
       change([dims](hid_t f) { replace(f, variable_text(), dims, plain()); })},
      {"forbidden filter", "filters shuffle, deflate, fletcher32",
       change([dims](hid_t f) { replace(f, H5T_IEEE_F32LE, dims, nbit()); })},
      {"external storage", "external storage",
       change([dims](hid_t f) { replace(f, H5T_IEEE_F32LE, dims, external()); })},
      {"virtual dataset", "another layout",
       change([dims](hid_t f) { replace(f, H5T_IEEE_F32LE, dims, virtual_layout()); })},
      {"soft link", "a soft link", change(soft_link)},
      {"external link", "an external link", change(external_link)},
      {"external link to a group", "an external link", change(external_group_link)},
      {"hard link cycle", "expected a dataset, got a group", change(link_to_root)},
      {"other tokens", "/inputs/input_ids", change(flip_first_token)},
      {"no provenance", "attribute producer",
       change([](hid_t f) { checked(H5Adelete(f, "producer")); })},
      {"no tap list", "attribute taps", change([](hid_t f) { checked(H5Adelete(f, "taps")); })},
      {"shorter tap list", "missing",
       change([](hid_t f) { write_text(f, "taps", "[\"embed\"]"); })},
      {"tap of a foreign layer", "got layers.9.hidden", change(list_foreign_tap)},
      {"unknown tap", "layers.0.secret",
       change([](hid_t f) { write_text(f, "taps", "[\"layers.0.secret\"]"); })},
      {"path as a tap", "attribute taps",
       change([](hid_t f) { write_text(f, "taps", "[\"../inputs/labels\"]"); })},
      {"another case", "attribute case_name",
       change([](hid_t f) { write_text(f, "case_name", "tiny"); })},
      {"another version", "attribute version",
       change([](hid_t f) { write_text(f, "version", "2"); })},
      {"another config", "attribute config",
       change([](hid_t f) { write_text(f, "config", "{}"); })},
      {"variable-length attribute", "attribute dialect",
       change([](hid_t f) { write_variable_text(f, "dialect"); })},
  };
}

/// The text attribute `name` with the first `from` in it replaced.
std::function<void(const fs::path&)> edit(const char* name, const std::string& from,
                                          const std::string& to) {
  return change([=](hid_t file) {
    std::string text = read_text(file, name);
    const size_t at = text.find(from);
    if (at == std::string::npos) throw std::runtime_error("tampering failed: no " + from);
    write_text(file, name, text.replace(at, from.size(), to));
  });
}

void write_first_loss(hid_t file, double value) {
  const hid_t dataset = checked(H5Dopen2(file, "/series/loss", H5P_DEFAULT));
  double losses[50];
  checked(H5Dread(dataset, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, losses));
  losses[0] = value;
  checked(H5Dwrite(dataset, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, losses));
  H5Dclose(dataset);
}

void unlisted_group(hid_t file) {
  H5Gclose(checked(H5Gcreate2(file, "/secret", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)));
}

std::vector<Damage> make_training_damages() {
  const char* loss = "/series/loss";
  return {
      {"missing series", "members of /series", change([loss](hid_t f) { remove(f, loss); })},
      {"series of float32", "type float64",
       change([loss](hid_t f) { replace(f, H5T_IEEE_F32LE, {50}, allocated(), loss); })},
      {"shorter series", "shape [50]",
       change([loss](hid_t f) { replace(f, H5T_IEEE_F64LE, {49}, allocated(), loss); })},
      {"external series", "external storage",
       change([loss](hid_t f) { replace(f, H5T_IEEE_F64LE, {50}, external(), loss); })},
      {"NaN in a series", "finite values",
       change([](hid_t f) { write_first_loss(f, std::numeric_limits<double>::quiet_NaN()); })},
      {"missing step", "members of /decisions",
       change([](hid_t f) { remove(f, "/decisions/49"); })},
      {"missing decision", "members of /decisions/7",
       change([](hid_t f) { remove(f, "/decisions/7/layers.0.topk"); })},
      {"step outside the file", "an external link",
       change([](hid_t f) { link_outside(f, "/decisions/7"); })},
      {"narrow projections", "shape [50,76,16]", change([](hid_t f) {
         replace(f, H5T_IEEE_F32LE, {50, 76, 8}, allocated(), "/parameters/projections");
       })},
      {"band without runs", "attribute runs",
       change([](hid_t f) { checked(H5Adelete_by_name(f, "/band", "runs", H5P_DEFAULT)); })},
      {"half a band", "members of /band", change([](hid_t f) { remove(f, "/band/variances"); })},
      {"unlisted group", "members of /", change(unlisted_group)},
      {"another recipe", "members of /decisions", edit("recipe", "\"steps\":50", "\"steps\":49")},
      {"a million steps", "recipe.steps", edit("recipe", "\"steps\":50", "\"steps\":1000000")},
      {"recipe with more", "known fields", edit("recipe", "\"world\":1", "\"world\":1,\"zzz\":1")},
      {"recipe that is no JSON", "recipe", edit("recipe", "{", "[")},
      {"other decisions", "attribute decisions",
       edit("decisions", "layers.0.topk", "layers.1.topk.x")},
      {"parameter twice", "twice",
       edit("parameters", "input_layernorm", "post_attention_layernorm")},
      {"foreign parameter", "parameters of case",
       edit("parameters", "model.norm.weight", "model.secret.weight")},
      {"path as a parameter", "attribute parameters",
       edit("parameters", "model.norm.weight", "../model.norm")},
      {"tensor of a tebibyte", "at most 4 MiB",
       edit("tensors", "[]",
            "[{\"dtype\":\"float32\",\"name\":\"x\",\"shape\":[1048576,1048576]}]")},
      {"tensor that is not there", "members of /",
       edit("tensors", "[]", "[{\"dtype\":\"float32\",\"name\":\"x\",\"shape\":[2]}]")},
      {"another suite", "attribute suite", edit("suite", "loss", "less")},
      {"another case", "attribute case_name", edit("case_name", "wide", "bias")},
      {"another config", "attribute config", edit("config", "{", " {")},
      {"no provenance", "attribute producer",
       change([](hid_t f) { checked(H5Adelete(f, "producer")); })},
  };
}

}  // namespace

const std::vector<Damage>& training_damages() {
  static const std::vector<Damage> all = make_training_damages();
  return all;
}

const std::vector<Damage>& damages() {
  static const std::vector<Damage> all = make_damages();
  return all;
}

}  // namespace dsv32::golden
