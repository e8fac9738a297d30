# coppice_library(NAME [TORCH] [DEPS target...]): the folder's .cpp files as one static library. DEPS is the dependency rule of the folder.
function(coppice_library name)
  cmake_parse_arguments(ARG "TORCH" "" "DEPS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*.cpp")
  add_library(coppice_${name} STATIC ${sources})
  target_link_libraries(coppice_${name} PUBLIC coppice_flags ${ARG_DEPS})
  if(ARG_TORCH)
    target_link_libraries(coppice_${name} PUBLIC coppice_libtorch)
    coppice_torch_pch(coppice_${name})
  endif()
endfunction()

# One precompiled header for everything that sees ATen.
function(coppice_torch_pch target)
  if(NOT TARGET coppice_torch_pch)
    file(WRITE "${CMAKE_BINARY_DIR}/torch_pch.cpp" "")
    add_library(coppice_torch_pch STATIC "${CMAKE_BINARY_DIR}/torch_pch.cpp")
    target_link_libraries(coppice_torch_pch PUBLIC coppice_flags coppice_libtorch)
    target_precompile_headers(coppice_torch_pch PRIVATE "${CMAKE_SOURCE_DIR}/cmake/torch_pch.h")
  endif()
  target_precompile_headers(${target} REUSE_FROM coppice_torch_pch)
  target_compile_options(${target} PRIVATE -fPIC)  # as the header was compiled; programs would have -fPIE
endfunction()
