# ccache where it is found; the settings that let it hit a precompiled header across clones come from the Makefile.
find_program(COPPICE_CCACHE ccache)
if(COPPICE_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${COPPICE_CCACHE}")
  set(CMAKE_C_COMPILER_LAUNCHER "${COPPICE_CCACHE}")
endif()
