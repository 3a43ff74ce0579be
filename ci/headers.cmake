# Target `headers`: every header compiles alone. Not part of `all`: ci/lint builds it.

file(GLOB_RECURSE headers RELATIVE "${PROJECT_SOURCE_DIR}"
  src/*.h harness/*.h golden/reader/*.h suites/kit/*.h measure/*.h)
list(REMOVE_ITEM headers src/optimized/simt/cuda.h)  # nvcc's half of simt.h

# Those that see torch, themselves or through another, share the precompiled header.
set(torch_headers "")
set(found 1)
while(found)
  set(found 0)
  foreach(header IN LISTS headers)
    file(STRINGS "${PROJECT_SOURCE_DIR}/${header}" lines REGEX "^ *# *include")
    if(lines MATCHES "<(torch|ATen|c10)/")
      set(sees_torch 1)
    else()
      set(sees_torch 0)
      foreach(known IN LISTS torch_headers)
        if(lines MATCHES "\"${known}\"")
          set(sees_torch 1)
        endif()
      endforeach()
    endif()
    if(sees_torch)
      list(REMOVE_ITEM headers "${header}")
      list(APPEND torch_headers "${header}")
      set(found 1)
    endif()
  endforeach()
endwhile()

# dsv32_headers(NAME HEADER...): an object library of one source per header.
function(dsv32_headers name)
  set(sources "")
  foreach(header IN LISTS ARGN)
    set(source "${PROJECT_BINARY_DIR}/headers/${header}.cpp")
    file(CONFIGURE OUTPUT "${source}" CONTENT "#include \"${header}\"\n")
    list(APPEND sources "${source}")
  endforeach()
  add_library(${name} OBJECT EXCLUDE_FROM_ALL ${sources})
  target_compile_definitions(${name} PRIVATE DSV32_SIMT)  # kernels: as the executor sees them
  target_link_libraries(${name} PRIVATE
    Boost::context CLI11::CLI11 GTest::gtest nlohmann_json::nlohmann_json)
  add_dependencies(headers ${name})
endfunction()

add_custom_target(headers)
dsv32_headers(plain_headers ${headers})
dsv32_headers(torch_headers ${torch_headers})
dsv32_use_torch(torch_headers)
