# Says what to install where there is no C++ compiler; CMake says only that it found none.
if(NOT CMAKE_CXX_COMPILER)
  string(REGEX MATCH "^[^ ]+" coppice_asked_cxx "$ENV{CXX}")
  if(coppice_asked_cxx STREQUAL "")
    set(coppice_asked_cxx c++)
    find_program(coppice_cxx NAMES c++ g++ clang++ NO_CACHE)
  else()
    find_program(coppice_cxx NAMES "${coppice_asked_cxx}" NO_CACHE)
  endif()
  if(NOT coppice_cxx)
    message(FATAL_ERROR "coppice is built from C++20: found no compiler '${coppice_asked_cxx}'; wanted g++ 12, clang++ 19 or later "
                        "(Debian: apt-get install g++; a wheel needs no compiler)")
  endif()
endif()
