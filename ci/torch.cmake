# Third parties. Torch headers are slow (20 s, 1.4 GB per file): one precompiled header for all.

find_package(Threads REQUIRED)
find_package(GTest REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
set(Boost_USE_STATIC_LIBS ON)
find_package(Boost 1.74 CONFIG REQUIRED COMPONENTS context)
find_package(Torch 2.11 REQUIRED PATHS "${DSV32_SITE}/torch" NO_DEFAULT_PATH)

file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/torch_pch.cpp" CONTENT "")
add_library(dsv32_torch_pch OBJECT "${PROJECT_BINARY_DIR}/torch_pch.cpp")
target_link_libraries(dsv32_torch_pch PUBLIC "${TORCH_LIBRARIES}")
target_precompile_headers(dsv32_torch_pch PRIVATE
  <torch/library.h> "${PROJECT_SOURCE_DIR}/src/bridge/libtorch.h")

# dsv32_use_torch(target): links LibTorch and compiles the target with the precompiled torch header.
function(dsv32_use_torch target)
  target_link_libraries(${target} PUBLIC "${TORCH_LIBRARIES}")
  target_precompile_headers(${target} REUSE_FROM dsv32_torch_pch)
endfunction()
