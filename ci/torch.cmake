# Third parties. Torch headers are slow (19 s, 1.4 GB per file): one precompiled header for all.

find_package(Threads REQUIRED)
find_package(GTest REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
set(Boost_USE_STATIC_LIBS ON)
find_package(Boost 1.74 CONFIG REQUIRED COMPONENTS context)
find_package(Torch 2.11 REQUIRED PATHS "${DSV32_SITE}/torch" NO_DEFAULT_PATH)

# Loaded when the reference first has a large float64 product; nothing is linked against it.
find_path(DSV32_OPENBLAS libscipy_openblas.so PATHS "${DSV32_SITE}/scipy_openblas32/lib"
  NO_DEFAULT_PATH DOC "folder of OpenBLAS; without it torch makes every float64 product")
if(NOT DSV32_OPENBLAS)
  message(STATUS "no OpenBLAS: torch makes every float64 product")
endif()

file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/torch_pch.cpp" CONTENT "")
add_library(dsv32_torch_pch OBJECT "${PROJECT_BINARY_DIR}/torch_pch.cpp")
target_link_libraries(dsv32_torch_pch PUBLIC "${TORCH_LIBRARIES}")
target_precompile_headers(dsv32_torch_pch PRIVATE <torch/torch.h>)

# dsv32_use_torch(target): links LibTorch and compiles the target with the precompiled torch header.
function(dsv32_use_torch target)
  target_link_libraries(${target} PUBLIC "${TORCH_LIBRARIES}")
  target_precompile_headers(${target} REUSE_FROM dsv32_torch_pch)
endfunction()
