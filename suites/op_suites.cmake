# Suites of the op library. Per op, one line in ops/CMakeLists.txt:
#
#   dsv32_op_suites(rms_norm KERNELS rms_norm column_sum)
#
# makes kernels_rms_norm (suites/kernels/rms_norm.cpp and the named kernels, run by the SIMT executor
# with mutants, address and undefined-behaviour sanitizers, no torch) and ops_rms_norm
# (suites/ops/rms_norm.cpp: CPU kernel and CUDA kernel in the executor, through the dispatcher).
# ops_gpu has the same op tests on a CUDA device; self_simt tests the executor itself.

find_package(Boost 1.74 CONFIG REQUIRED COMPONENTS context)

set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)

# dsv32_checked(TARGET): built for the executor, with mutants and sanitizers.
function(dsv32_checked target)
  target_compile_definitions(${target} PRIVATE DSV32_SIMT DSV32_MUTANTS)
  target_compile_options(${target} PRIVATE ${sanitizers} -g1)
  target_link_options(${target} PRIVATE ${sanitizers})
endfunction()

function(dsv32_op_suites op)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "KERNELS")
  set(kernels ${arg_KERNELS})
  list(TRANSFORM kernels REPLACE "(.+)" "${PROJECT_SOURCE_DIR}/src/optimized/kernels/\\1.cu")
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
  dsv32_suite(NAME kernels_${op} SOURCES ../kernels/${op}.cpp ${kernels} LIBS dsv32_kernel_kit
    LABELS ops cpu LIGHT)
  dsv32_checked(kernels_${op})

  add_library(ops_${op}_tests OBJECT ${op}.cpp)
  target_link_libraries(ops_${op}_tests PUBLIC dsv32_ops_kit)
  dsv32_use_torch(ops_${op}_tests)
  dsv32_suite(NAME ops_${op} SOURCES backends.cpp LIBS ops_${op}_tests dsv32_ops_kit
    LABELS ops cpu TORCH)
  set_property(GLOBAL APPEND PROPERTY dsv32_op_tests ops_${op}_tests)
endfunction()

# After the last op: the suite that needs a device, and the one that calls the ops from Python.
function(dsv32_op_suites_end)
  get_property(tests GLOBAL PROPERTY dsv32_op_tests)
  dsv32_suite(NAME ops_gpu SOURCES backends_gpu.cpp LIBS ${tests} dsv32_ops_kit
    LABELS ops gpu TORCH)
  dsv32_python_suite(NAME ops_python SCRIPT suites/ops/python_test.py LABELS ops cpu
    ENVIRONMENT "DSV32_OPS=$<TARGET_FILE:dsv32_ops>")
endfunction()
