#include "src/io/safetensors_header.h"

#include <algorithm>
#include <array>
#include <optional>

#include "src/io/json.h"
#include "src/io/text.h"

namespace dsv32::io {
namespace {

constexpr size_t kMaxName = 4096;  // bytes
constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxMetadata = size_t{1} << 20;  // bytes of keys and values
constexpr size_t kMaxRank = 16;
constexpr uint64_t kMaxDimension = uint64_t{1} << 48;

struct StoredType {
  std::string_view name;
  uint64_t bits;
  std::optional<DType> dtype;  // nullopt: valid, but not read by this version
};
/// Every type of the format.
constexpr std::array kTypes = {StoredType{"BOOL", 8, {}},
                               StoredType{"F4", 4, {}},
                               StoredType{"F6_E2M3", 6, {}},
                               StoredType{"F6_E3M2", 6, {}},
                               StoredType{"U8", 8, DType::uint8},
                               StoredType{"I8", 8, {}},
                               StoredType{"F8_E5M2", 8, {}},
                               StoredType{"F8_E4M3", 8, {}},
                               StoredType{"F8_E8M0", 8, {}},
                               StoredType{"F8_E4M3FNUZ", 8, {}},
                               StoredType{"F8_E5M2FNUZ", 8, {}},
                               StoredType{"I16", 16, {}},
                               StoredType{"U16", 16, {}},
                               StoredType{"F16", 16, DType::float16},
                               StoredType{"BF16", 16, DType::bfloat16},
                               StoredType{"I32", 32, DType::int32},
                               StoredType{"U32", 32, {}},
                               StoredType{"F32", 32, DType::float32},
                               StoredType{"C64", 64, {}},
                               StoredType{"F64", 64, DType::float64},
                               StoredType{"I64", 64, DType::int64},
                               StoredType{"U64", 64, {}}};

const StoredType* find_type(std::string_view name) {
  const auto it = std::find_if(kTypes.begin(), kTypes.end(),
                               [&](const StoredType& t) { return t.name == name; });
  return it == kTypes.end() ? nullptr : &*it;
}

enum class Field : int { dtype = 1, shape = 2, data_offsets = 4 };
constexpr int kAllFields = 7;

/// One tensor while its object is read.
struct Draft {
  std::string name;
  const StoredType* type = nullptr;
  Shape shape;
  std::vector<uint64_t> offsets;
  int seen = 0;  // bits of Field
};

/// A SAX handler that follows the only shape that a header may have and builds nothing else:
/// {name: {dtype: string, shape: [n...], data_offsets: [n, n]}, __metadata__: {string: string}}.
class HeaderParser : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderParser(std::string where) : where_(std::move(where)) {}
  SafetensorsHeader take() { return std::move(header_); }

  bool null() override { misplaced("null"); }
  bool boolean(bool) override { misplaced("true or false"); }
  bool number_integer(int64_t value) override { misplaced(std::to_string(value)); }
  bool number_float(double, const std::string& text) override { misplaced(printable(text)); }
  bool binary(Json::binary_t&) override { misplaced("binary data"); }
  bool number_unsigned(uint64_t value) override;
  bool string(std::string& value) override;
  bool start_object(size_t) override;
  bool end_object() override;
  bool key(std::string& name) override;
  bool start_array(size_t) override;
  bool end_array() override;
  bool parse_error(size_t position, const std::string& token,
                   const nlohmann::detail::exception&) override;

 private:
  /// `names` lies between the members of the outermost object; each other state is one place
  /// deeper.
  enum class State {
    start,
    names,
    name_read,
    metadata,
    metadata_key,
    tensor,
    field,
    shape,
    offsets,
    done
  };

  std::string place() const {
    return draft_.name.empty() ? "header" : "tensor " + printable(draft_.name);
  }
  [[noreturn]] void fail(const std::string& what, const std::string& expected,
                         const std::string& got) const {
    refuse({.where = where_, .what = place() + ": " + what, .expected = expected, .got = got});
  }
  [[noreturn]] void misplaced(const std::string& got) const { fail(position(), wanted(), got); }
  std::string position() const;
  std::string wanted() const;
  void add_metadata(const std::string& value);
  void name_key(std::string& name);
  void field_key(const std::string& name);
  void finish_tensor();
  uint64_t checked_bytes() const;

  std::string where_;
  SafetensorsHeader header_;
  State state_ = State::start;
  bool metadata_seen_ = false;
  std::string metadata_key_;
  size_t metadata_bytes_ = 0;
  Draft draft_;
  Field field_ = Field::dtype;
};

std::string HeaderParser::position() const {
  switch (state_) {
    case State::metadata_key:
      return "__metadata__." + printable(metadata_key_);
    case State::field:
      return field_ == Field::dtype ? "dtype" : field_ == Field::shape ? "shape" : "data_offsets";
    case State::shape:
      return "shape";
    case State::offsets:
      return "data_offsets";
    default:
      return "value";
  }
}

std::string HeaderParser::wanted() const {
  switch (state_) {
    case State::metadata_key:
      return "a string";
    case State::field:
      return field_ == Field::dtype ? "a string" : "a list of unsigned integers";
    case State::shape:
    case State::offsets:
      return "unsigned integers";
    default:
      return "an object";
  }
}

bool HeaderParser::start_object(size_t) {
  if (state_ == State::start) {
    state_ = State::names;
  } else if (state_ == State::name_read) {
    state_ = draft_.name.empty() ? State::metadata : State::tensor;
  } else {
    misplaced("an object");
  }
  return true;
}

bool HeaderParser::end_object() {
  if (state_ == State::names) {
    state_ = State::done;
    return true;
  }
  if (state_ == State::tensor) finish_tensor();
  state_ = State::names;
  return true;
}

bool HeaderParser::key(std::string& name) {
  if (state_ == State::names) {
    name_key(name);
  } else if (state_ == State::tensor) {
    field_key(name);
  } else {
    metadata_key_ = name;
    state_ = State::metadata_key;
  }
  return true;
}

void HeaderParser::name_key(std::string& name) {
  draft_ = {};
  state_ = State::name_read;
  if (name == "__metadata__") {
    if (metadata_seen_) fail("__metadata__", "one", "a second one");
    metadata_seen_ = true;
    return;
  }
  if (name.empty()) fail("name", "a tensor name", "an empty one");
  if (name.size() > kMaxName)
    fail("name", "at most " + std::to_string(kMaxName) + " bytes", std::to_string(name.size()));
  if (header_.tensors.contains(name)) fail("name", "each name once", printable(name) + " twice");
  if (header_.tensors.size() == kMaxTensors)
    fail("tensors", "at most " + std::to_string(kMaxTensors), "more");
  draft_.name = std::move(name);
}

void HeaderParser::field_key(const std::string& name) {
  if (name == "dtype") {
    field_ = Field::dtype;
  } else if (name == "shape") {
    field_ = Field::shape;
  } else if (name == "data_offsets") {
    field_ = Field::data_offsets;
  } else {
    fail("fields", "dtype, shape, data_offsets", printable(name));
  }
  if (draft_.seen & static_cast<int>(field_)) fail("fields", "each field once", name + " twice");
  draft_.seen |= static_cast<int>(field_);
  state_ = State::field;
}

bool HeaderParser::string(std::string& value) {
  if (state_ == State::metadata_key) {
    add_metadata(value);
    return true;
  }
  if (state_ != State::field || field_ != Field::dtype) misplaced("a string");
  draft_.type = find_type(value);
  if (!draft_.type) fail("dtype", "a type of the format", printable(value));
  state_ = State::tensor;
  return true;
}

void HeaderParser::add_metadata(const std::string& value) {
  metadata_bytes_ += metadata_key_.size() + value.size();
  if (metadata_bytes_ > kMaxMetadata)
    fail("__metadata__", "at most " + std::to_string(kMaxMetadata) + " bytes", "more");
  if (!header_.metadata.emplace(metadata_key_, value).second)
    fail("__metadata__", "each key once", printable(metadata_key_) + " twice");
  state_ = State::metadata;
}

bool HeaderParser::start_array(size_t) {
  if (state_ != State::field || field_ == Field::dtype) misplaced("a list");
  state_ = field_ == Field::shape ? State::shape : State::offsets;
  return true;
}

bool HeaderParser::end_array() {
  if (state_ == State::offsets && draft_.offsets.size() != 2)
    fail("data_offsets", "two numbers", std::to_string(draft_.offsets.size()));
  state_ = State::tensor;
  return true;
}

bool HeaderParser::number_unsigned(uint64_t value) {
  if (state_ == State::shape) {
    if (draft_.shape.size() == kMaxRank)
      fail("shape", "at most " + std::to_string(kMaxRank) + " dimensions", "more");
    if (value > kMaxDimension) fail("shape", "dimensions up to 2^48", std::to_string(value));
    draft_.shape.push_back(static_cast<int64_t>(value));
  } else if (state_ == State::offsets) {
    if (draft_.offsets.size() == 2) fail("data_offsets", "two numbers", "more");
    draft_.offsets.push_back(value);
  } else {
    misplaced(std::to_string(value));
  }
  return true;
}

uint64_t HeaderParser::checked_bytes() const {
  uint64_t bits = draft_.type->bits;
  // In the order of the format's own reader: the elements first, then their bits.
  uint64_t count = 1;
  for (int64_t dimension : draft_.shape)
    if (__builtin_mul_overflow(count, static_cast<uint64_t>(dimension), &count))
      fail("shape", "a product within 64 bits", to_string(draft_.shape));
  if (__builtin_mul_overflow(count, bits, &bits) || bits > uint64_t{INT64_MAX})
    fail("shape", "a size within 63 bits", to_string(draft_.shape));
  if (bits % 8 != 0) fail("shape", "whole bytes", std::to_string(bits) + " bits");
  return bits / 8;
}

void HeaderParser::finish_tensor() {
  if (draft_.seen != kAllFields)
    fail("fields", "dtype, shape and data_offsets", "an object without one of them");
  const uint64_t begin = draft_.offsets[0], end = draft_.offsets[1];
  if (begin > end)
    fail("data_offsets", "begin <= end", std::to_string(begin) + " > " + std::to_string(end));
  const uint64_t bytes = checked_bytes();
  if (end - begin != bytes)
    fail("data_offsets", std::to_string(bytes) + " bytes, as dtype and shape say",
         std::to_string(end - begin));
  header_.tensors.emplace(std::move(draft_.name),
                          TensorEntry{.dtype = draft_.type->dtype.value_or(DType::uint8),
                                      .shape = std::move(draft_.shape),
                                      .begin = begin,
                                      .end = end,
                                      .stored = draft_.type->name,
                                      .readable = draft_.type->dtype.has_value()});
  draft_ = {};
}

bool HeaderParser::parse_error(size_t position, const std::string& token,
                               const nlohmann::detail::exception& error) {
  const bool number = std::string_view(error.what()).find("out_of_range") != std::string_view::npos;
  fail(number ? "number" : "JSON at byte " + std::to_string(position),
       "one well-formed JSON object", printable(token.empty() ? error.what() : token, 60));
}

/// Offsets must tile the data section: no hole, no overlap, no byte left over.
void check_tiling(const SafetensorsHeader& header, uint64_t data_bytes, const std::string& where) {
  std::vector<std::pair<const std::string*, const TensorEntry*>> order;
  for (const auto& [name, entry] : header.tensors) order.emplace_back(&name, &entry);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  uint64_t at = 0;
  for (const auto& [name, entry] : order) {
    if (entry->begin != at)
      refuse({.where = where,
              .what = "tensor " + printable(*name) + ": data_offsets",
              .expected = "begin " + std::to_string(at) + ", where the tensor before it ends",
              .got = std::to_string(entry->begin) +
                     (entry->begin > at ? ", a hole" : ", an overlap")});
    at = entry->end;
  }
  if (at != data_bytes)
    refuse({.where = where,
            .what = "length of the data",
            .expected = std::to_string(at) + " bytes, as the header says",
            .got = std::to_string(data_bytes) +
                   (at > data_bytes ? ", a truncated file" : ", trailing bytes")});
}

/// The JSON parser takes a NUL for the end and skips a byte order mark: both are refused before it
/// runs.
void check_text(const std::string& text, const std::string& where) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos || text[first] != '{')
    refuse({.where = where,
            .what = "header",
            .expected = "a JSON object",
            .got = first == std::string::npos ? "blanks only" : printable(text.substr(first, 8))});
  if (const size_t nul = text.find('\0'); nul != std::string::npos)
    refuse({.where = where,
            .what = "header",
            .expected = "text",
            .got = "a NUL at byte " + std::to_string(nul)});
}

}  // namespace

SafetensorsHeader parse_safetensors_header(const std::string& text, uint64_t data_bytes,
                                           const std::string& where) {
  check_text(text, where);
  HeaderParser parser(where);
  Json::sax_parse(text, &parser);
  SafetensorsHeader header = parser.take();
  check_tiling(header, data_bytes, where);
  return header;
}

std::string_view safetensors_dtype(DType dtype) {
  const auto it = std::find_if(kTypes.begin(), kTypes.end(),
                               [&](const StoredType& t) { return t.dtype == dtype; });
  return it->name;
}

}  // namespace dsv32::io
