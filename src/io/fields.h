#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "src/io/json.h"
#include "src/io/text.h"

namespace dsv32::io {

/// Typed access to the fields of one JSON object; `prefix` is "" or "rope_scaling.".
class Fields {
 public:
  Fields(const Json& object, std::string where, std::string prefix = "")
      : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {}

  /// nullptr for an absent field and for null: Hugging Face writes null for "not set".
  const Json* find(const std::string& name) const {
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  int64_t integer(const std::string& name) const { return as_integer(name, required(name)); }
  double number(const std::string& name) const { return as_number(name, required(name)); }
  int64_t integer_or(const std::string& name, int64_t otherwise) const {
    const Json* value = find(name);
    return value ? as_integer(name, *value) : otherwise;
  }
  double number_or(const std::string& name, double otherwise) const {
    const Json* value = find(name);
    return value ? as_number(name, *value) : otherwise;
  }
  bool boolean_or(const std::string& name, bool otherwise) const {
    const Json* value = find(name);
    if (value && !value->is_boolean()) wrong(name, "true or false", *value);
    return value ? value->get<bool>() : otherwise;
  }
  std::string text(const std::string& name) const {
    const Json& value = required(name);
    if (!value.is_string()) wrong(name, "a string", value);
    return value.get<std::string>();
  }
  [[noreturn]] void wrong(const std::string& name, const std::string& expected,
                          const Json& got) const {
    refuse({.where = where_, .what = prefix_ + name, .expected = expected, .got = kind_of(got)});
  }
  const std::string& where() const { return where_; }

 private:
  const Json& required(const std::string& name) const {
    const Json* value = find(name);
    if (!value)
      refuse({.where = where_,
              .what = prefix_ + name,
              .expected = "a value",
              .got = "a missing field"});
    return *value;
  }
  int64_t as_integer(const std::string& name, const Json& value) const {
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t{INT64_MAX});
    if (!fits) wrong(name, "an integer", value);
    return value.get<int64_t>();
  }
  double as_number(const std::string& name, const Json& value) const {
    if (!value.is_number()) wrong(name, "a number", value);
    return value.get<double>();
  }

  const Json& object_;
  std::string where_, prefix_;
};

}  // namespace dsv32::io
