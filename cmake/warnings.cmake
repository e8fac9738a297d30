# Flags of coppice's own code. Bits must not depend on the processor or the preset: a fixed baseline and no contraction.
add_library(coppice_flags INTERFACE)
target_compile_options(coppice_flags INTERFACE
  -march=x86-64-v3 -ffp-contract=off
  -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wimplicit-fallthrough $<$<BOOL:${COPPICE_WARNINGS_ARE_ERRORS}>:-Werror>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # Precompiled headers that ccache can hit; g++ 12's false positives in inlined std::string and vector code.
  target_compile_options(coppice_flags INTERFACE
    -fpch-preprocess -Wno-missing-field-initializers -Wno-restrict -Wno-stringop-overflow -Wno-array-bounds
    -Wno-maybe-uninitialized -Wno-dangling-pointer)
else()
  # libstdc++ 12 itself uses what it calls deprecated.
  target_compile_options(coppice_flags INTERFACE -Wno-missing-field-initializers -Wno-missing-designated-field-initializers
    -Wno-deprecated-declarations)
endif()
target_include_directories(coppice_flags INTERFACE "${CMAKE_SOURCE_DIR}")
