#pragma once

/// Planted bugs that tests switch on, to see their checks turn red. Each kernel header has an enum
/// of its own whose first value is `none`; a kernel asks `if (mutant(RmsNormMutant::scale))`.
/// Outside DSV32_MUTANTS builds the answer is a constant false.
namespace dsv32::optimized {

#if defined(DSV32_MUTANTS)

/// The planted bug of this kernel; a test sets it and sets it back to `none`.
template <typename Mutant>
inline Mutant active_mutant = Mutant::none;

template <typename Mutant>
bool mutant(Mutant asked) {
  return active_mutant<Mutant> == asked;
}

#elif defined(__CUDACC__)

template <typename Mutant>
__host__ __device__ constexpr bool mutant(Mutant) {
  return false;
}

#else

template <typename Mutant>
constexpr bool mutant(Mutant) {
  return false;
}

#endif

}  // namespace dsv32::optimized
