#include "src/reference/float64_products.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "src/model/errors.h"
#include "src/reference/openblas.h"
#include "src/reference/reference.h"

namespace dsv32::reference {
namespace {

constexpr const char* kVariable = "DSV32_FLOAT64_BLAS";

// --- matrices -----------------------------------------------------------------------------------

bool is_dense(int64_t stride, int64_t size) { return stride == 1 || size == 1; }

/// Rows one after the other; columns may be apart.
bool is_row_major(const Tensor& t) {
  return is_dense(t.stride(-1), t.size(-1)) && (t.size(-2) == 1 || t.stride(-2) >= t.size(-1));
}

/// Every matrix of the result is row-major, or its transpose is.
Tensor readable(const Tensor& t) {
  return is_row_major(t) || is_row_major(t.transpose(-1, -2)) ? t : t.contiguous();
}

/// Where the matrices of a readable tensor lie.
struct Matrices {
  double* data;
  bool transposed;          // columns one after the other
  int64_t rows, cols;       // as the product sees them
  int64_t leading;          // elements between two rows, or two columns
  std::vector<int64_t> at;  // where each of them starts

  explicit Matrices(const Tensor& t)
      : data(t.data_ptr<double>()),
        transposed(!is_row_major(t)),
        rows(t.size(-2)),
        cols(t.size(-1)) {
    const int64_t lines = transposed ? cols : rows, width = transposed ? rows : cols;
    leading = lines == 1 ? width : t.stride(transposed ? -1 : -2);
    at = {0};
    for (int64_t axis = 0; axis < t.dim() - 2; ++axis) add_axis(t.size(axis), t.stride(axis));
  }

  double* row(int64_t i) const { return data + i * (transposed ? 1 : leading); }
  double* col(int64_t j) const { return data + j * (transposed ? leading : 1); }

 private:
  void add_axis(int64_t size, int64_t stride) {
    std::vector<int64_t> finer;
    for (const int64_t start : at)
      for (int64_t i = 0; i < size; ++i) finer.push_back(start + i * stride);
    at = std::move(finer);
  }
};

/// The part of a product that one thread makes: columns or rows [begin, end) of matrix g.
struct Part {
  size_t g;
  bool by_rows;
  int64_t begin, end;
};

void multiply_part(const Matrices& a, const Matrices& b, const Matrices& c, const Part& part) {
  const double* from_a = (part.by_rows ? a.row(part.begin) : a.data) + a.at[part.g];
  const double* from_b = (part.by_rows ? b.data : b.col(part.begin)) + b.at[part.g];
  double* to = (part.by_rows ? c.row(part.begin) : c.col(part.begin)) + c.at[part.g];
  const int64_t size = part.end - part.begin;
  const auto form = [&](const Matrices& m) {
    return m.transposed == c.transposed ? kPlain : kTransposed;
  };
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  openblas()->dgemm(c.transposed ? kColMajor : kRowMajor, form(a), form(b),
                    narrow(part.by_rows ? size : c.rows), narrow(part.by_rows ? c.cols : size),
                    narrow(a.cols), 1, from_a, narrow(a.leading), from_b, narrow(b.leading), 0, to,
                    narrow(c.leading));
}

/// Parts of one matrix: none, if there are enough matrices to keep the threads equally busy.
int64_t parts_of(int64_t matrices, int64_t threads) {
  constexpr int64_t kManyPerThread = 4;
  return matrices % threads == 0 || matrices >= kManyPerThread * threads ? 1 : threads;
}

void multiply(const Matrices& a, const Matrices& b, const Matrices& c) {
  constexpr int64_t kTile = 16;  // lines that no kernel splits
  const auto matrices = static_cast<int64_t>(c.at.size());
  const int64_t parts = parts_of(matrices, at::get_num_threads());
  const bool by_rows = c.rows >= c.cols;
  const int64_t size = by_rows ? c.rows : c.cols;
  const int64_t step = ((size + parts - 1) / parts + kTile - 1) / kTile * kTile;
  at::parallel_for(0, matrices * parts, /*grain_size=*/1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = std::min(size, i % parts * step), end = std::min(size, begin + step);
      if (begin < end)
        multiply_part(a, b, c, {static_cast<size_t>(i / parts), by_rows, begin, end});
    }
  });
}

/// a times b in a new tensor, each matrix stored by rows or by columns.
Tensor multiplied(const Tensor& a, const Tensor& b, bool by_columns) {
  auto shape = a.sizes().vec();
  shape.back() = b.size(-1);
  if (by_columns) std::swap(shape.end()[-1], shape.end()[-2]);
  const Tensor stored = torch::empty(shape, a.options());
  const Tensor result = by_columns ? stored.transpose(-1, -2) : stored;
  const Tensor left = readable(a), right = readable(b);
  multiply(Matrices(left), Matrices(right), Matrices(result));
  return result;
}

struct ProductFunction : torch::autograd::Function<ProductFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& a, const Tensor& b) {
    ctx->save_for_backward({a, b});
    return multiplied(a, b, /*by_columns=*/false);
  }
  /// A gradient lies as its operand does: that of a weight needs no copy.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &a = saved[0], &b = saved[1], &dc = upstream[0];
    const auto by_columns = [](const Tensor& t) { return !is_row_major(t); };
    Tensor da, db;
    if (ctx->needs_input_grad(0)) da = multiplied(dc, b.transpose(-1, -2), by_columns(a));
    if (ctx->needs_input_grad(1)) db = multiplied(a.transpose(-1, -2), dc, by_columns(b));
    return {da, db};
  }
};

// --- which library ------------------------------------------------------------------------------

enum class Wish { faster, torch, openblas };

Wish read_wish() {
  const char* word = std::getenv(kVariable);
  if (word == nullptr) return Wish::faster;
  const std::string name = word;
  if (name == "torch") return Wish::torch;
  if (name != "openblas")
    throw Error(ExitCode::usage, {.where = std::string("environment variable ") + kVariable,
                                  .what = "library",
                                  .expected = "torch or openblas",
                                  .got = "'" + name + "'"});
  if (openblas() == nullptr)
    throw Error(ExitCode::environment, {.where = std::string("environment variable ") + kVariable,
                                        .what = "OpenBLAS",
                                        .expected = "libscipy_openblas.so",
                                        .got = "none",
                                        .hint = "ci/setup installs it"});
  return Wish::openblas;
}

Wish wish() {
  static const Wish read = read_wish();
  return read;
}

/// Has OpenBLAS made a product, or been found to be the faster one?
std::atomic<bool> openblas_is_used = false;

template <typename F>
double seconds(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Takes turns, so that both meet the same neighbours. OpenBLAS unless torch is clearly faster: a
/// machine on which both are about as fast gives the same bits on each run.
bool openblas_is_not_slower() {
  if (openblas() == nullptr) return false;
  constexpr int64_t kSize = 512;
  constexpr int kTurns = 5;
  constexpr double kClearly = 1.25;
  const torch::NoGradGuard no_grad;
  const Tensor a = torch::full({kSize, kSize}, 0.5, torch::kFloat64), b = torch::ones_like(a);
  double ours = std::numeric_limits<double>::infinity(), theirs = ours;
  for (int turn = 0; turn < kTurns; ++turn) {
    ours = std::min(ours, seconds([&] { multiplied(a, b, false); }));
    theirs = std::min(theirs, seconds([&] { torch::mm(a, b); }));
  }
  return ours <= kClearly * theirs;
}

bool faster_is_openblas() {
  static const bool answer = openblas_is_not_slower();
  return answer;
}

/// Sizes and strides that fit cblas's int, none of them 0.
bool fits(const Tensor& t) {
  const auto is_small = [](int64_t value) {
    return value > 0 && value <= std::numeric_limits<int>::max();
  };
  return t.numel() > 0 && is_small(t.size(-1)) && is_small(t.size(-2)) &&
         t.stride(-1) <= std::numeric_limits<int>::max() &&
         t.stride(-2) <= std::numeric_limits<int>::max();
}

}  // namespace

bool goes_to_openblas(const Tensor& a, const Tensor& b) {
  constexpr double kWorthIt = 64e6;  // operations: about a millisecond
  if (a.scalar_type() != torch::kFloat64 || !a.is_cpu() || wish() == Wish::torch) return false;
  if (!fits(a) || !fits(b)) return false;
  const double cols = static_cast<double>(b.size(-1));
  const double operations = 2 * static_cast<double>(a.numel()) * cols;
  const bool goes = wish() == Wish::openblas || (operations >= kWorthIt && faster_is_openblas());
  if (goes) openblas_is_used = true;
  return goes;
}

Tensor openblas_product(const Tensor& a, const Tensor& b) { return ProductFunction::apply(a, b); }

std::string float64_products() {
  return wish() == Wish::openblas || openblas_is_used ? openblas()->name : "torch";
}

}  // namespace dsv32::reference
