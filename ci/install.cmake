# What `cmake --install build --prefix P` and the wheel hold: bin/dsv32-verify, lib/libdsv32_ops.so and
# share/dsv32-verify (configs, goldens, golden/dump), which the program finds from where it stands.

# In a wheel torch and CUDA stand beside the package; elsewhere they are where the build found them.
set(CMAKE_INSTALL_RPATH "$ORIGIN/../lib:$ORIGIN/../../torch/lib:$ORIGIN/../../nvidia/cu13/lib")
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)

# Called by the folders that make them.
function(dsv32_install target)
  install(TARGETS ${target} RUNTIME DESTINATION bin LIBRARY DESTINATION lib)
endfunction()

set(data share/dsv32-verify)
install(DIRECTORY configs DESTINATION ${data})
install(DIRECTORY golden/data DESTINATION ${data}/golden
  PATTERN golden/data/demo EXCLUDE)  # read by no program
install(DIRECTORY golden/dump DESTINATION ${data}/golden
  PATTERN __pycache__ EXCLUDE PATTERN "*.pyc" EXCLUDE)
install(FILES LICENSE DESTINATION ${data})
