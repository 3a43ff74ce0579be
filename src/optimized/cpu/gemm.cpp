#include "src/optimized/cpu/gemm.h"

// Of the MKL inside ATen: LibTorch exports them and installs no header for them.
extern "C" {
void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k,
            const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
            const float* beta, float* c, const int* ldc);
int MKL_Set_Num_Threads_Local(int threads);
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

}  // namespace dsv32::optimized::cpu
