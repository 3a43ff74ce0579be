# Finds the packages of .venv: LibTorch is the torch wheel, the CUDA toolkit the nvidia/cu13 wheels.

file(GLOB DSV32_SITE "${CMAKE_CURRENT_SOURCE_DIR}/.venv/lib/python3*/site-packages")
list(LENGTH DSV32_SITE count)
if(NOT count EQUAL 1 OR NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/.venv/.stamp")
  message(FATAL_ERROR ".venv is missing or half made: run ci/setup first")
endif()

set(DSV32_CUDA_HOME "${DSV32_SITE}/nvidia/cu13")
set(CUDAToolkit_ROOT "${DSV32_CUDA_HOME}")
set(CUDA_TOOLKIT_ROOT_DIR "${DSV32_CUDA_HOME}" CACHE PATH "CUDA toolkit, as FindCUDA wants it")
set(CMAKE_CUDA_COMPILER "${DSV32_CUDA_HOME}/bin/nvcc")
set(ENV{CUDA_HOME} "${DSV32_CUDA_HOME}")
# Without an explicit list torch runs a probe on a device.
set(TORCH_CUDA_ARCH_LIST "9.0a")
