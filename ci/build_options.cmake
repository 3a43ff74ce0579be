# Flags, compiler cache and parallelism, the same for every target.

# x86-64-v2: binaries are carried to other machines, so never -march=native.
# -fPIC everywhere, so that one precompiled torch header fits libraries and programs alike.
add_compile_options(
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wno-missing-field-initializers;-fPIC;-march=x86-64-v2>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-fPIC,-Wall,-Wextra>")

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  file(CONFIGURE OUTPUT "${PROJECT_SOURCE_DIR}/.ccache/ccache.conf" CONTENT
    "max_size = 5G\nhash_dir = false\nsloppiness = pch_defines,time_macros,include_file_mtime,include_file_ctime\n")
  set(launcher "${CMAKE_COMMAND}" -E env "CCACHE_DIR=${PROJECT_SOURCE_DIR}/.ccache"
    "CCACHE_BASEDIR=${PROJECT_SOURCE_DIR}" "${CCACHE_PROGRAM}")
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${launcher})
endif()

# ninja alone would start cores + 2 jobs; a torch translation unit takes 1.4 GB.
cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
set_property(GLOBAL PROPERTY JOB_POOLS work=${cores})
set(CMAKE_JOB_POOL_COMPILE work)
set(CMAKE_JOB_POOL_LINK work)
set(CMAKE_JOB_POOL_PRECOMPILE_HEADER work)
