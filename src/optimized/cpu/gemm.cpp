#include "src/optimized/cpu/gemm.h"

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <vector>

#include "src/optimized/cpu/clones.h"

// Of the MKL inside ATen: LibTorch exports them and installs no header for them.
extern "C" {
void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k,
            const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
            const float* beta, float* c, const int* ldc);
int MKL_Set_Num_Threads_Local(int threads);
// Of the OpenMP runtime that ATen and oneDNN use.
int omp_get_max_threads();
void omp_set_num_threads(int threads);
}

namespace dsv32::optimized::cpu {
namespace {

class OneThread {
 public:
  OneThread() : before_(MKL_Set_Num_Threads_Local(1)) {}
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;
  ~OneThread() { MKL_Set_Num_Threads_Local(before_); }

 private:
  int before_;
};

/// The same for oneDNN, which asks OpenMP: its choice of a kernel depends on the answer.
class OneOpenMpThread {
 public:
  OneOpenMpThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  OneOpenMpThread(const OneOpenMpThread&) = delete;
  OneOpenMpThread& operator=(const OneOpenMpThread&) = delete;
  ~OneOpenMpThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

/// [rows, columns], after the transposition.
at::Tensor as_tensor(const FactorOf<bf16>& factor, int64_t rows, int64_t columns) {
  const std::vector<int64_t> strides = factor.transposed ? std::vector<int64_t>{1, factor.stride}
                                                         : std::vector{factor.stride, int64_t{1}};
  return at::from_blob(const_cast<bf16*>(factor.data), {rows, columns}, strides, at::kBFloat16);
}

}  // namespace

namespace {

/// c = alpha a b + beta c by MKL.
void mkl_gemm(const ProductShape& shape, float alpha, const Factor& a, const Factor& b, float beta,
              float* c, int64_t c_stride) {
  const OneThread one_thread;
  // BLAS counts columns first: what it sees are the transposes, c^T = b^T a^T.
  const auto as_int = [](int64_t x) { return static_cast<int>(x); };
  const int m = as_int(shape.columns), n = as_int(shape.rows), k = as_int(shape.depth);
  const int lda = as_int(b.stride), ldb = as_int(a.stride), ldc = as_int(c_stride);
  sgemm_(b.transposed ? "T" : "N", a.transposed ? "T" : "N", &m, &n, &k, &alpha, b.data, &lda,
         a.data, &ldb, &beta, c, &ldc);
}

/// y [columns, rows] = a x^T of x [rows, columns], rows of x `stride` elements apart. In tiles
/// whose lines stay in the first-level cache.
DSV32_CLONES void scaled_transpose(float a, const float* x, int64_t stride, int64_t rows,
                                   int64_t columns, float* y) {
  constexpr int64_t kTile = 16;
  for (int64_t r = 0; r < rows; r += kTile) {
    const int64_t height = std::min(kTile, rows - r);
    for (int64_t c = 0; c < columns; ++c) {
      const float* from = x + r * stride + c;
      float* to = y + c * rows + r;
      if (height == kTile) {
        for (int64_t i = 0; i < kTile; ++i) to[i] = a * from[i * stride];
      } else {
        for (int64_t i = 0; i < height; ++i) to[i] = a * from[i * stride];
      }
    }
  }
}

/// `factor` times `scale` as rows of [rows, columns]; itself where that is what it is.
Factor as_rows(const Factor& factor, float scale, int64_t rows, int64_t columns,
               std::vector<float>& copy) {
  if (!factor.transposed && scale == 1) return factor;
  copy.resize(std::max(copy.size(), static_cast<size_t>(rows * columns)));
  if (factor.transposed) {
    scaled_transpose(scale, factor.data, factor.stride, columns, rows, copy.data());
  } else {
    for (int64_t i = 0; i < rows; ++i)
      cpu::scale(scale, factor.data + i * factor.stride, copy.data() + i * columns, columns);
  }
  return {copy.data(), columns};
}

// A block of b that stays in the second-level cache.
constexpr int64_t kBlockColumns = 128, kBlockDepth = 128;

/// The same by oneDNN's kernel, made for the CPU at hand: twice as fast as MKL where MKL does not
/// know the CPU's widest vectors. beta is 0 or 1.
void onednn_gemm(const ProductShape& shape, float alpha, const Factor& a, const Factor& b,
                 bool adds, float* c, int64_t c_stride) {
  thread_local std::vector<float> a_copy, b_copy;
  const Factor left = as_rows(a, alpha, shape.rows, shape.depth, a_copy);
  const Factor right = as_rows(b, 1, shape.depth, shape.columns, b_copy);
  for (int64_t column = 0; column < shape.columns; column += kBlockColumns) {
    const int64_t columns = std::min(kBlockColumns, shape.columns - column);
    for (int64_t k = 0; k < shape.depth; k += kBlockDepth) {
      at::native::cpublas::brgemm(shape.rows, columns, std::min(kBlockDepth, shape.depth - k),
                                  left.stride, right.stride, c_stride, adds || k > 0, left.data + k,
                                  right.data + k * right.stride + column, c + column);
    }
  }
}

// Below, a product is done before oneDNN has found its kernel, or has made one for its shape.
constexpr int64_t kSmallProduct = 1 << 20;
// A transposed b is copied: that takes as many rows to pay.
constexpr int64_t kFewRows = 32;

}  // namespace

void gemm(const ProductShape& shape, float alpha, const Factor& a, const Factor& b, float beta,
          float* c, int64_t c_stride) {
  const bool is_small = shape.rows * shape.columns * shape.depth < kSmallProduct;
  if (is_small || (b.transposed && shape.rows < kFewRows) || (beta != 0 && beta != 1)) {
    mkl_gemm(shape, alpha, a, b, beta, c, c_stride);
  } else {
    onednn_gemm(shape, alpha, a, b, beta == 1, c, c_stride);
  }
}

void product(const ProductShape& shape, const FactorOf<float>& a, const FactorOf<float>& b,
             float* c, int64_t c_stride) {
  gemm(shape, 1, a, b, 0, c, c_stride);
}

void product(const ProductShape& shape, const FactorOf<bf16>& a, const FactorOf<bf16>& b, bf16* c,
             int64_t c_stride) {
  const OneOpenMpThread one_thread;
  at::Tensor result = as_tensor({c, c_stride}, shape.rows, shape.columns);
  at::mm_out(result, as_tensor(a, shape.rows, shape.depth),
             as_tensor(b, shape.depth, shape.columns));
}

template <>
Transposed<float>::Transposed(const float* x, int64_t rows, int64_t columns)
    : copy_(rows * columns), factor_{copy_.data(), columns} {
  scaled_transpose(1, x, rows, columns, rows, copy_.data());
}

template <>
Transposed<bf16>::Transposed(const bf16* x, int64_t rows, int64_t)
    : copy_(0), factor_{x, rows, /*transposed=*/true} {}

}  // namespace dsv32::optimized::cpu
