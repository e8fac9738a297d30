# Debian packages, by minimum version. tools/setup installs them.
find_package(Threads REQUIRED)
find_package(OpenSSL 3.0 REQUIRED COMPONENTS Crypto)
find_package(ZLIB 1.2 REQUIRED)
find_package(RapidJSON 1.1 REQUIRED)
find_package(CLI11 2.1 REQUIRED)
find_package(tomlplusplus 3.3 REQUIRED)
find_package(spdlog 1.10 REQUIRED)
find_package(fmt 9 REQUIRED)
find_package(hwy 1.0.3 REQUIRED)
find_package(Eigen3 3.4 REQUIRED NO_MODULE)
find_package(PkgConfig REQUIRED)
pkg_check_modules(sentencepiece REQUIRED IMPORTED_TARGET sentencepiece>=0.1.97)
if(COPPICE_TESTS)
  find_package(GTest 1.12 REQUIRED)
endif()

if(COPPICE_PYTHON_MODULE)
  find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module OPTIONAL_COMPONENTS Development.SABIModule)
  execute_process(COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
    OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE nanobind_ROOT COMMAND_ERROR_IS_FATAL ANY)
  find_package(nanobind 3.1 CONFIG REQUIRED)
endif()

# plotly.min.js of PyPI plotly, embedded into reports.
set(COPPICE_PLOTLY_JS "" CACHE FILEPATH "plotly.min.js (tools/setup finds it; `pip install .` takes that of its build environment)")
if(COPPICE_PYTHON_MODULE AND NOT COPPICE_PLOTLY_JS)
  execute_process(OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE plotly COMMAND "${Python_EXECUTABLE}" -c
    "import importlib.util as u; s = u.find_spec('plotly'); print(s.submodule_search_locations[0] if s else '')")
  set(COPPICE_PLOTLY_JS "${plotly}/package_data/plotly.min.js")
endif()
if(NOT EXISTS "${COPPICE_PLOTLY_JS}")
  message(FATAL_ERROR "COPPICE_PLOTLY_JS is '${COPPICE_PLOTLY_JS}', which does not exist; build with `make build` or `make core`, which set it")
endif()
