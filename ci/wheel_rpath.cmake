# In a wheel, libraries are looked for beside the package and nowhere on the machine that built it.
set(beside "$ORIGIN/../lib:$ORIGIN/../../torch/lib:$ORIGIN/../../nvidia/cu13/lib")
foreach(file bin/dsv32-verify lib/libdsv32_ops.so)
  file(RPATH_SET FILE "${STAGE}/${file}" NEW_RPATH "${beside}")
endforeach()
