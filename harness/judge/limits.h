#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "harness/judge/verdict.h"
#include "src/model/tensor.h"
#include "src/model/trace.h"

/// The table of limits: every tolerance of the judge, where it applies and how it was found.
/// `dsv32-verify list limits` prints it. The ops' limits stand beside it, in op_limits.h.
namespace dsv32::harness {

/// Configs that a row holds for. `larger` is every config but tiny.
enum class Configs { all, tiny, small, larger };
/// Dtypes of the judged side that a row holds for: wide are float64 and float32, narrow bfloat16
/// and float16.
enum class DTypes { all, wide, narrow };
std::string_view to_string(Configs configs);
std::string_view to_string(DTypes dtypes);

/// Makes a row's number the limit of a measured value.
enum class Unit {
  plain,        // the number is the limit
  roundings,    // times the rounding floor of the dtype
  false_alarm,  // it is the probability of a false alarm, from which Hotelling's limit follows
};
std::string_view to_string(Unit unit);

struct Number {
  double value;
  Unit unit = Unit::plain;
  constexpr Number(double number, Unit of = Unit::plain) : value(number), unit(of) {}
};

/// One row: a check, where it applies, what is measured, the limit, and the basis of the limit.
/// Numbers that no verdict is measured against, like a share from which something is named, are
/// rows as well.
struct Limit {
  const char* check;
  Configs configs;
  DTypes dtypes;
  const char* metric;
  Number number;
  const char* basis;
};
std::span<const Limit> limits();

/// Where something was measured. A row that holds for some configs or dtypes alone can only be
/// asked for with one.
struct Where {
  std::string_view config = {};  // Case::config_name
  std::optional<DType> dtype = {};
  int64_t components = 0, runs = 0;  // of the band, for Unit::false_alarm
};

/// The first row of this check that holds there. Throws Error (internal) when there is none.
const Limit& find_limit(std::string_view check, const Where& where);
/// The limit itself.
double limit_of(std::string_view check, const Where& where = {});
/// A measured number against its limit.
Measure by_limit(std::string_view check, const Where& where, double measured);
Measure by_limit(std::string_view check, double measured);

/// The families of rows that taps are judged by.
/// `slopes`: gradients by taps.
enum class Rows { tokens, keys, scalar, gradient, slopes };
std::string_view to_string(Rows rows);

/// A row for taps of one family in one mode: its numbers are judged together and have one basis.
struct TapLimits {
  Mode mode;
  Rows rows;
  DTypes dtypes;
  double row_ratio;      // largest error of a row over its denominator; of rows of "row.long"
  double tensor_ratio;   // the same of a whole tensor of "tensor.large" elements or more
  double cap;            // times what one rounding of its inputs and one of the output do to a row
  double tail;           // error of an element, in units of its noise, that few may exceed
  double tail_fraction;  // so large a share of the elements may
  double tail_count;     // and so many however small the tensor is
  double max_tail;       // no element may exceed this
  const char* basis;
};
std::span<const TapLimits> tap_limits();

/// The row of one tap in one mode for a judged side of this dtype. Throws Error (internal) when
/// there is none.
const TapLimits& limits_for(const TapName& tap, Mode mode, DType dtype);

/// Allowance (>= 1) for a row of few elements, whose norm is less certain: the quantile of
/// sqrt(chi-square_n / n) over that of a long row, at the probability of "row.quantile".
double short_row_factor(double elements);
/// The same for the ratio of two norms over a whole small tensor.
double small_tensor_factor(double elements);
/// A norm estimated from `degrees` squared projections may exceed the true one by this factor.
double sketch_factor(double degrees);

}  // namespace dsv32::harness
