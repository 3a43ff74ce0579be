#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "src/optimized/cpu/rows.h"

/// Matrix products of one thread, for kernels that are parallel outside, and their buffers.
namespace dsv32::optimized::cpu {

/// A factor of a product as it lies in memory, row after row `stride` elements apart.
template <typename T>
struct FactorOf {
  const T* data;
  int64_t stride;
  bool transposed = false;
};
using Factor = FactorOf<float>;

struct ProductShape {
  int64_t rows;
  int64_t columns;
  int64_t depth;
};

/// c = alpha a b + beta c with a [rows, depth], b [depth, columns], after the transposition. Runs
/// on the calling thread alone, so that the bits do not depend on the number of threads.
void gemm(const ProductShape& shape, float alpha, const Factor& a, const Factor& b, float beta,
          float* c, int64_t c_stride);

/// c = a b. bf16: by oneDNN, summed in float32 and rounded once; the CPU's own bf16 products where
/// it has them.
void product(const ProductShape& shape, const FactorOf<float>& a, const FactorOf<float>& b,
             float* c, int64_t c_stride);
void product(const ProductShape& shape, const FactorOf<bf16>& a, const FactorOf<bf16>& b, bf16* c,
             int64_t c_stride);

/// Memory that starts at a cache line; it is not filled.
template <typename T>
class BufferOf {
 public:
  explicit BufferOf(int64_t count)
      : tensor_(at::empty({count * static_cast<int64_t>(sizeof(T))}, at::kByte)) {}
  T* data() const { return static_cast<T*>(tensor_.mutable_data_ptr()); }

 private:
  at::Tensor tensor_;
};
using Buffer = BufferOf<float>;

/// x [columns, rows], transposed, as the factor [rows, columns] of many products: what every
/// float32 product would do with it is done once.
template <typename T>
class Transposed {
 public:
  Transposed(const T* x, int64_t rows, int64_t columns);
  const FactorOf<T>& factor() const { return factor_; }

 private:
  BufferOf<T> copy_;
  FactorOf<T> factor_;
};

/// `count` values as float32: the values themselves, or a copy.
class Widened {
 public:
  Widened(const float* x, int64_t) : copy_(0), data_(x) {}
  Widened(const bf16* x, int64_t count) : copy_(count), data_(copy_.data()) {
    widen(x, copy_.data(), count);
  }
  const float* data() const { return data_; }

 private:
  Buffer copy_;
  const float* data_;
};

}  // namespace dsv32::optimized::cpu
