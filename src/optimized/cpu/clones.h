#pragma once

/// DSV32_CLONES stands in front of a function with vectorisable loops: it is compiled for AVX-512,
/// AVX2 and the base line. AddressSanitizer runs before the loader can choose, so its builds have
/// the base line alone.
#if defined(__SANITIZE_ADDRESS__)
#define DSV32_CLONES
#else
#define DSV32_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#endif
