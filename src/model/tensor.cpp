#include "src/model/tensor.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "src/model/errors.h"

namespace dsv32 {

namespace {

constexpr size_t kAlignment = 64;  // bytes: one cache line

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  int64_t size;
  bool floating;
  double rounding_floor;
  double epsilon;
};

// In the order of the enum.
constexpr std::array<DTypeInfo, 8> kDTypes = {{
    {DType::float64, "float64", 8, true, 5.5e-17, 0x1p-52},
    {DType::float32, "float32", 4, true, 3e-8, 0x1p-23},
    {DType::bfloat16, "bfloat16", 2, true, 1.66e-3, 0x1p-7},
    {DType::float16, "float16", 2, true, 2.1e-4, 0x1p-10},
    {DType::int64, "int64", 8, false, 0, 0},
    {DType::int32, "int32", 4, false, 0, 0},
    {DType::uint8, "uint8", 1, false, 0, 0},
    {DType::fp8, "fp8", 2, true, 1.66e-3, 0x1p-7},
}};

const DTypeInfo& info_of(DType dtype) { return kDTypes.at(static_cast<size_t>(dtype)); }

// Element types as they lie in memory.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Round to odd: a second rounding of the result to fewer bits is then right.
float to_float_odd(double value) {
  const float nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) == value || std::isnan(value)) return nearest;
  uint32_t bits = std::bit_cast<uint32_t>(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(value)) --bits;  // towards zero
  return std::bit_cast<float>(bits | 1U);
}

// Widened without loss.
float widen(BFloat16 x) { return bfloat16_to_float(x.bits); }
float widen(Float16 x) { return float16_to_float(x.bits); }
template <typename T>
T widen(T x) {
  return x;
}

template <typename To, typename From>
To to_integer(From value) {
  if constexpr (std::is_integral_v<From>) {
    if (std::in_range<To>(value)) return static_cast<To>(value);
  } else {
    const double whole = std::nearbyint(static_cast<double>(value));
    // -2^63 is a double, 2^63 - 1 is not: hence the half-open range.
    const double low = static_cast<double>(std::numeric_limits<To>::min());
    const double high = std::ldexp(1.0, std::numeric_limits<To>::digits);
    if (whole >= low && whole < high) return static_cast<To>(whole);
  }
  throw Error(ExitCode::artefact, {.where = "tensor",
                                   .what = "value does not fit the integer type",
                                   .expected = {},
                                   .got = std::to_string(value)});
}

template <typename To, typename From>
To convert(From stored) {
  const auto value = widen(stored);
  using Wide = std::remove_cv_t<decltype(value)>;
  if constexpr (std::is_same_v<To, From>) {
    return stored;
  } else if constexpr (std::is_same_v<To, BFloat16> || std::is_same_v<To, Float16>) {
    float narrow;
    if constexpr (std::is_same_v<Wide, float>) {
      narrow = value;
    } else {
      narrow = to_float_odd(static_cast<double>(value));
    }
    if constexpr (std::is_same_v<To, BFloat16>) return {float_to_bfloat16(narrow)};
    return {float_to_float16(narrow)};
  } else if constexpr (std::is_integral_v<To>) {
    return to_integer<To>(value);
  } else {
    return static_cast<To>(value);
  }
}

// Calls f with a null pointer of the element type.
template <typename F>
decltype(auto) dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float64:
      return f(static_cast<double*>(nullptr));
    case DType::float32:
      return f(static_cast<float*>(nullptr));
    case DType::bfloat16:
      return f(static_cast<BFloat16*>(nullptr));
    case DType::float16:
      return f(static_cast<Float16*>(nullptr));
    case DType::int64:
      return f(static_cast<int64_t*>(nullptr));
    case DType::int32:
      return f(static_cast<int32_t*>(nullptr));
    case DType::uint8:
      return f(static_cast<uint8_t*>(nullptr));
    case DType::fp8:
      break;
  }
  throw Error(ExitCode::internal, {.where = "tensor",
                                   .what = "unknown dtype",
                                   .expected = {},
                                   .got = std::to_string(static_cast<int>(dtype))});
}

template <typename From, typename To>
void convert_all(const From* from, To* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = convert<To>(from[i]);
}

[[noreturn]] void refuse_allocation(size_t bytes) {
  throw Error(ExitCode::environment, {.where = "memory",
                                      .what = "cannot allocate a tensor",
                                      .expected = std::to_string(bytes) + " bytes",
                                      .got = "none"});
}

// Zero pages of the kernel: nothing is touched before it is written, and huge pages fault 512 times
// less often.
std::shared_ptr<std::byte[]> map_zeroed(size_t bytes) {
  void* block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) refuse_allocation(bytes);
  madvise(block, bytes, MADV_HUGEPAGE);  // a wish; without it only slower
  return {static_cast<std::byte*>(block), [bytes](std::byte* p) { munmap(p, bytes); }};
}

std::shared_ptr<std::byte[]> allocate_zeroed(size_t bytes) {
  constexpr size_t kMapFrom = size_t{4} << 20;  // two huge pages
  if (bytes >= kMapFrom) return map_zeroed(bytes);
  void* block = std::calloc(1, bytes + kAlignment);
  if (block == nullptr) refuse_allocation(bytes);
  const auto address = reinterpret_cast<uintptr_t>(block);
  const uintptr_t aligned = (address + kAlignment - 1) / kAlignment * kAlignment;
  return {reinterpret_cast<std::byte*>(aligned), [block](std::byte*) { std::free(block); }};
}

void check_type(DType dtype, bool matches, size_t size) {
  if (matches) return;
  throw Error(ExitCode::internal, {.where = "tensor",
                                   .what = "typed view of another type",
                                   .expected = std::string(to_string(dtype)),
                                   .got = "a type of " + std::to_string(size) + " bytes"});
}

/// Exponent of the smallest normal number.
int smallest_exponent(DType dtype) {
  constexpr int kFloat16Exponent = -14;
  switch (dtype) {
    case DType::float64:
      return std::numeric_limits<double>::min_exponent - 1;
    case DType::float16:
      return kFloat16Exponent;
    default:  // bfloat16 has the exponents of float32
      return std::numeric_limits<float>::min_exponent - 1;
  }
}

template <typename T>
bool matches(DType dtype) {
  if constexpr (std::is_same_v<T, double>) return dtype == DType::float64;
  if constexpr (std::is_same_v<T, float>) return dtype == DType::float32;
  if constexpr (std::is_same_v<T, uint16_t>) return is_narrow(dtype);
  if constexpr (std::is_same_v<T, int64_t>) return dtype == DType::int64;
  if constexpr (std::is_same_v<T, int32_t>) return dtype == DType::int32;
  if constexpr (std::is_same_v<T, uint8_t>) return dtype == DType::uint8;
  return false;
}

}  // namespace

int64_t item_size(DType dtype) { return info_of(dtype).size; }
std::string_view to_string(DType dtype) { return info_of(dtype).name; }
bool is_floating(DType dtype) { return info_of(dtype).floating; }
bool is_narrow(DType dtype) {
  return dtype == DType::bfloat16 || dtype == DType::float16 || dtype == DType::fp8;
}
DType stored_type(DType dtype) { return dtype == DType::fp8 ? DType::bfloat16 : dtype; }
double rounding_floor(DType dtype) { return info_of(dtype).rounding_floor; }
double epsilon(DType dtype) { return info_of(dtype).epsilon; }

double ulp_at(double value, DType dtype) {
  const double size = std::fabs(value);
  if (!std::isfinite(size)) return 0;
  const int lowest = smallest_exponent(dtype);
  const int exponent = size > 0 ? std::max(std::ilogb(size), lowest) : lowest;
  return std::ldexp(epsilon(dtype), exponent);
}

DType parse_dtype(std::string_view text) {
  std::string known;
  for (const DTypeInfo& info : kDTypes) {
    if (info.name == text) return info.dtype;
    known += (known.empty() ? "" : ", ") + std::string(info.name);
  }
  throw Error(ExitCode::usage, {.where = "dtype",
                                .what = "unknown name",
                                .expected = "one of " + known,
                                .got = "'" + std::string(text) + "'"});
}

int64_t numel(const Shape& shape) {
  int64_t product = 1;
  for (const int64_t dimension : shape) {
    if (dimension < 0 || __builtin_mul_overflow(product, dimension, &product)) {
      throw Error(ExitCode::artefact, {.where = "shape",
                                       .what = "element count",
                                       .expected = "dimensions >= 0 with a product below 2^63",
                                       .got = to_string(shape)});
    }
  }
  return product;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ",";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40U);  // quiet
  const uint32_t half_to_even = 0x7fffU + ((bits >> 16) & 1U);
  return static_cast<uint16_t>((bits + half_to_even) >> 16);
}

float float16_to_float(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000U) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fU;
  const uint32_t mantissa = bits & 0x3ffU;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  const uint32_t wide_exponent = exponent == 0x1f ? 0xffU : exponent + 112;  // 127 - 15
  return std::bit_cast<float>(sign | (wide_exponent << 23) | (mantissa << 13));
}

uint16_t float_to_float16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  uint32_t result;
  if (magnitude > 0x7f800000U) {  // NaN: quiet, payload cut
    result = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
  } else if (magnitude >= 0x47800000U) {  // 2^16 and more
    result = 0x7c00U;
  } else if (magnitude <
             0x38800000U) {  // below 2^-14: one unit is 2^-24, the ulp of numbers near 1/2
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    result = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5F);
  } else {
    const uint32_t half_to_even = 0xfffU + ((magnitude >> 13) & 1U);
    result = (magnitude + half_to_even - (112U << 23)) >> 13;
  }
  return static_cast<uint16_t>(sign | result);
}

HostTensor::HostTensor(DType dtype, Shape shape) : dtype_(dtype), shape_(std::move(shape)) {
  numel_ = dsv32::numel(shape_);
  int64_t bytes = 0;
  if (__builtin_mul_overflow(numel_, item_size(dtype_), &bytes)) {
    throw Error(ExitCode::artefact, {.where = "shape",
                                     .what = "size in bytes",
                                     .expected = "below 2^63",
                                     .got = dsv32::to_string(shape_)});
  }
  data_ = allocate_zeroed(static_cast<size_t>(bytes));
}

HostTensor HostTensor::over(std::shared_ptr<std::byte[]> memory, DType dtype, Shape shape) {
  HostTensor tensor;
  tensor.dtype_ = dtype;
  tensor.shape_ = std::move(shape);
  tensor.numel_ = dsv32::numel(tensor.shape_);
  tensor.data_ = std::move(memory);
  return tensor;
}

HostTensor HostTensor::from_doubles(DType dtype, Shape shape, std::span<const double> values) {
  HostTensor tensor(dtype, std::move(shape));
  if (static_cast<int64_t>(values.size()) != tensor.numel_) {
    throw Error(ExitCode::internal, {.where = "tensor",
                                     .what = "number of values",
                                     .expected = std::to_string(tensor.numel_),
                                     .got = std::to_string(values.size())});
  }
  dispatch(dtype, [&]<typename To>(To*) {
    convert_all(values.data(), reinterpret_cast<To*>(tensor.raw()), tensor.numel_);
  });
  return tensor;
}

template <typename T>
std::span<T> HostTensor::data() {
  check_type(dtype_, matches<T>(dtype_), sizeof(T));
  return {reinterpret_cast<T*>(data_.get()), static_cast<size_t>(numel_)};
}

template <typename T>
std::span<const T> HostTensor::data() const {
  check_type(dtype_, matches<T>(dtype_), sizeof(T));
  return {reinterpret_cast<const T*>(data_.get()), static_cast<size_t>(numel_)};
}

template std::span<double> HostTensor::data<double>();
template std::span<float> HostTensor::data<float>();
template std::span<uint16_t> HostTensor::data<uint16_t>();
template std::span<int64_t> HostTensor::data<int64_t>();
template std::span<int32_t> HostTensor::data<int32_t>();
template std::span<uint8_t> HostTensor::data<uint8_t>();
template std::span<const double> HostTensor::data<double>() const;
template std::span<const float> HostTensor::data<float>() const;
template std::span<const uint16_t> HostTensor::data<uint16_t>() const;
template std::span<const int64_t> HostTensor::data<int64_t>() const;
template std::span<const int32_t> HostTensor::data<int32_t>() const;
template std::span<const uint8_t> HostTensor::data<uint8_t>() const;

double HostTensor::at(int64_t i) const {
  if (i < 0 || i >= numel_) {
    throw Error(ExitCode::internal, {.where = "tensor",
                                     .what = "element index",
                                     .expected = "0.." + std::to_string(numel_ - 1),
                                     .got = std::to_string(i)});
  }
  return dispatch(dtype_, [&]<typename From>(From*) {
    return convert<double>(reinterpret_cast<const From*>(raw())[i]);
  });
}

std::vector<double> HostTensor::to_doubles() const {
  std::vector<double> values(static_cast<size_t>(numel_));
  dispatch(dtype_, [&]<typename From>(From*) {
    convert_all(reinterpret_cast<const From*>(raw()), values.data(), numel_);
  });
  return values;
}

HostTensor HostTensor::cast(DType dtype) const {
  if (dtype == dtype_) return *this;
  HostTensor result(dtype, shape_);
  dispatch(dtype_, [&]<typename From>(From*) {
    dispatch(dtype, [&]<typename To>(To*) {
      convert_all(reinterpret_cast<const From*>(raw()), reinterpret_cast<To*>(result.raw()),
                  numel_);
    });
  });
  return result;
}

bool HostTensor::identical(const HostTensor& other) const {
  if (dtype_ != other.dtype_ || shape_ != other.shape_ || defined() != other.defined())
    return false;
  return !defined() || std::memcmp(raw(), other.raw(), static_cast<size_t>(bytes())) == 0;
}

}  // namespace dsv32
