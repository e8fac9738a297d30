# libtorch of the PyPI wheel as imported targets. find_package(Torch) would demand a CUDA toolkit.
set(LIBTORCH "$ENV{LIBTORCH}" CACHE PATH "The torch folder of the wheel (site-packages/torch)")
if(NOT EXISTS "${LIBTORCH}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "LIBTORCH is '${LIBTORCH}', which has no lib/libtorch_cpu.so; build with `make build`, which sets it")
endif()
foreach(name c10 torch_cpu)
  add_library(torch::${name} SHARED IMPORTED)
  set_target_properties(torch::${name} PROPERTIES
    IMPORTED_LOCATION "${LIBTORCH}/lib/lib${name}.so" IMPORTED_NO_SONAME TRUE)
endforeach()

add_library(coppice_libtorch INTERFACE)
target_include_directories(coppice_libtorch SYSTEM INTERFACE
  "${LIBTORCH}/include" "${LIBTORCH}/include/torch/csrc/api/include")
target_compile_definitions(coppice_libtorch INTERFACE AT_PER_OPERATOR_HEADERS _GLIBCXX_USE_CXX11_ABI=1)
target_link_libraries(coppice_libtorch INTERFACE torch::torch_cpu torch::c10)
# The wheel's libraries find each other by their own run paths (CUDA's runtime and CUPTI lie beside the torch folder).
target_link_options(coppice_libtorch INTERFACE "LINKER:-rpath,${LIBTORCH}/lib" "LINKER:--allow-shlib-undefined")
