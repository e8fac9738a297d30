# The CUDA half of the wheel, and nvcc for kernels of our own. The programs start without a GPU; only the full environment has the libraries that they
# need for it. Sets COPPICE_CUDA_KERNELS. (CMake 3.25 knows no C++20 for nvcc, so nvcc is called by hand.)
find_program(COPPICE_NVCC nvcc PATHS /usr/local/cuda/bin)
set(COPPICE_CUDA_ARCHITECTURES 80 90 CACHE STRING "Compute capabilities of the GPUs to build for, rising")
file(GLOB cuda_runtime "${LIBTORCH}/../nvidia/*/lib/libcudart.so.*")
file(GLOB cublas "${LIBTORCH}/../nvidia/*/lib/libcublas.so.*")
if(NOT EXISTS "${LIBTORCH}/lib/libtorch_cuda.so" OR NOT cuda_runtime OR NOT cublas)
  message(FATAL_ERROR "COPPICE_CUDA is on and '${LIBTORCH}' is not a CUDA build of libtorch with NVIDIA's libraries beside it; take the environment of `tools/setup full`")
endif()
# What stands between this build and kernels of our own; empty: nothing.
set(no_kernels "")
if(COPPICE_CUDA STREQUAL "LIBTORCH")
  set(no_kernels "COPPICE_CUDA is LIBTORCH")
elseif(NOT COPPICE_NVCC)
  set(no_kernels "there is no nvcc on PATH or in /usr/local/cuda/bin; install the CUDA toolkit")
else()
  execute_process(COMMAND "${COPPICE_NVCC}" --version OUTPUT_VARIABLE nvcc_version COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCH "release ([0-9]+)" _ "${nvcc_version}")
  if(NOT cuda_runtime MATCHES "\\.so\\.${CMAKE_MATCH_1}")
    set(no_kernels "${COPPICE_NVCC} is of CUDA ${CMAKE_MATCH_1} and libtorch has ${cuda_runtime}; install the toolkit of that version")
  endif()
endif()
if(no_kernels AND NOT COPPICE_CUDA MATCHES "^(AUTO|LIBTORCH)$")
  message(FATAL_ERROR "COPPICE_CUDA is on and ${no_kernels}, or set it to LIBTORCH (slower MoE layers)")
elseif(no_kernels)
  message(STATUS "GPUs by libtorch's operators alone: ${no_kernels}")
  set(COPPICE_CUDA_KERNELS OFF)
else()
  set(COPPICE_CUDA_KERNELS ON)
endif()

# No symbol of libtorch_cuda is called: it registers its kernels when it is loaded.
if(COPPICE_CUDA_KERNELS)
  get_filename_component(nvcc_folder "${COPPICE_NVCC}" REALPATH)
  get_filename_component(cuda_toolkit "${nvcc_folder}/../.." ABSOLUTE)
  set(COPPICE_CUDA_INCLUDE "${cuda_toolkit}/include")  # for the files that call it: a folder more would change every command line
endif()
# The headers of NCCL, with which libtorch_cuda was built, and of CUDA's runtime: options of the one file that sees them.
file(GLOB cuda_headers "${LIBTORCH}/../nvidia/cu*/include/cuda_runtime_api.h")
file(GLOB nccl_header "${LIBTORCH}/../nvidia/nccl/include/nccl.h")
if(NOT cuda_headers OR NOT nccl_header)
  message(FATAL_ERROR "COPPICE_CUDA is on and there is no cuda_runtime_api.h or no nccl.h beside '${LIBTORCH}'; take the environment of `tools/setup full`")
endif()
set(COPPICE_NCCL_INCLUDES "")
foreach(header ${cuda_headers} ${nccl_header})
  get_filename_component(folder "${header}" DIRECTORY)
  list(APPEND COPPICE_NCCL_INCLUDES -isystem "${folder}")
endforeach()
add_library(torch::cuda INTERFACE IMPORTED)
target_link_libraries(torch::cuda INTERFACE
  -Wl,--no-as-needed "${LIBTORCH}/lib/libtorch_cuda.so" "${LIBTORCH}/lib/libc10_cuda.so" "${cuda_runtime}" -Wl,--as-needed)

# coppice_cuda_source(TARGET FILE.cu): what nvcc makes of the file becomes part of the library. No ATen in it: that takes nvcc most of a minute.
function(coppice_cuda_source target source)
  set(input "${CMAKE_CURRENT_SOURCE_DIR}/${source}")
  set(object "${CMAKE_CURRENT_BINARY_DIR}/${source}.o")
  get_filename_component(folder "${object}" DIRECTORY)
  file(MAKE_DIRECTORY "${folder}")
  list(TRANSFORM COPPICE_CUDA_ARCHITECTURES REPLACE "(.+)" "-gencode=arch=compute_\\1,code=sm_\\1" OUTPUT_VARIABLE code)
  list(GET COPPICE_CUDA_ARCHITECTURES -1 newest)
  list(APPEND code "-gencode=arch=compute_${newest},code=compute_${newest}")  # what the driver compiles for later GPUs
  add_custom_command(OUTPUT "${object}" DEPENDS "${input}" DEPFILE "${object}.d" VERBATIM
    COMMENT "Building CUDA object ${source}.o"
    COMMAND ${CMAKE_CXX_COMPILER_LAUNCHER} "${COPPICE_NVCC}" -std=c++20 -O3 ${code} -Xcompiler=-fPIC,-Wall,-Wextra -Werror=all-warnings
      "-I${CMAKE_SOURCE_DIR}" -MD -MF "${object}.d" -c "${input}" -o "${object}")
  target_sources(${target} PRIVATE "${object}")
endfunction()
