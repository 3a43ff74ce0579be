#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dsv32 {

/// `fp8` is no type of tensors but a mode of models (docs/spec.md 1): what it stores is bfloat16.
enum class DType { float64, float32, bfloat16, float16, int64, int32, uint8, fp8 };

/// Bytes per element.
int64_t item_size(DType dtype);
/// "float32", "bfloat16", ...: the spelling of the command line and of trace metadata.
std::string_view to_string(DType dtype);
/// The inverse of to_string; throws Error (usage) that names the known ones.
DType parse_dtype(std::string_view text);
bool is_floating(DType dtype);
/// bfloat16 or float16, or fp8, which stores bfloat16.
bool is_narrow(DType dtype);
/// The type in which a model of this dtype stores its values.
DType stored_type(DType dtype);
/// Relative L2 error of one round-to-nearest in this type: 1.66e-3 bf16, 2.1e-4 f16, 3e-8
/// f32, 5.5e-17 f64.
double rounding_floor(DType dtype);
/// Distance between 1 and the next larger number: 2^-7 bf16, 2^-10 f16, 2^-23 f32, 2^-52 f64.
double epsilon(DType dtype);
/// Distance between a number of this type near `value` and the next: of the normal numbers.
double ulp_at(double value, DType dtype);

using Shape = std::vector<int64_t>;
/// Product of the dimensions; throws Error (artefact) on overflow or a negative dimension.
int64_t numel(const Shape& shape);
std::string to_string(const Shape& shape);  // "[2,32,64]"

inline float bfloat16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
uint16_t float_to_bfloat16(float value);  // round to nearest even, NaN stays NaN
float float16_to_float(uint16_t bits);
uint16_t float_to_float16(float value);

/// A tensor in host memory, row-major and contiguous. Copies share the data.
class HostTensor {
 public:
  HostTensor() = default;
  /// A tensor of zeros.
  HostTensor(DType dtype, Shape shape);
  static HostTensor from_doubles(DType dtype, Shape shape, std::span<const double> values);
  /// A tensor over memory that somebody else made, of at least its size.
  static HostTensor over(std::shared_ptr<std::byte[]> memory, DType dtype, Shape shape);

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t numel() const { return numel_; }
  int64_t bytes() const { return numel_ * item_size(dtype_); }
  bool defined() const { return data_ != nullptr; }

  std::byte* raw() { return data_.get(); }
  const std::byte* raw() const { return data_.get(); }

  /// A typed view; T must match dtype (uint16_t for bfloat16 and float16). Throws Error (internal)
  /// if not.
  template <typename T>
  std::span<T> data();
  template <typename T>
  std::span<const T> data() const;

  /// Gives element i widened to double (exact for every type but large int64).
  double at(int64_t i) const;
  std::vector<double> to_doubles() const;
  /// Gives the same values in another type, rounded to nearest even.
  HostTensor cast(DType dtype) const;
  /// True when both have the same bytes, dtype and shape.
  bool identical(const HostTensor& other) const;

 private:
  DType dtype_ = DType::float32;
  Shape shape_;
  int64_t numel_ = 0;
  std::shared_ptr<std::byte[]> data_;
};

}  // namespace dsv32
