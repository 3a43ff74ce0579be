#include "src/optimized/cpu/gemm.h"

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

void gemm(const ProductShape& shape, float alpha, const Factor& a, const Factor& b, float beta,
          float* c, int64_t c_stride) {
  const OneThread one_thread;
  // BLAS counts columns first: what it sees are the transposes, c^T = b^T a^T.
  const auto as_int = [](int64_t x) { return static_cast<int>(x); };
  const int m = as_int(shape.columns), n = as_int(shape.rows), k = as_int(shape.depth);
  const int lda = as_int(b.stride), ldb = as_int(a.stride), ldc = as_int(c_stride);
  sgemm_(b.transposed ? "T" : "N", a.transposed ? "T" : "N", &m, &n, &k, &alpha, b.data, &lda,
         a.data, &ldb, &beta, c, &ldc);
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

}  // namespace dsv32::optimized::cpu
