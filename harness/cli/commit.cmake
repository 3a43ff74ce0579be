# Writes OUT, a header that names the commit of SOURCE; only when it changed. Run at each build.
execute_process(
  COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12 --match=NoTag
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
  set(commit "unknown")
endif()
file(CONFIGURE OUTPUT ${OUT} CONTENT "#define DSV32_COMMIT \"${commit}\"\n" @ONLY)
