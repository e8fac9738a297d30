# cmake --install: the program, and the core as one shared library with its public headers and find_package(coppice). Only what those headers declare is
# visible in the library, so a program that links it meets none of the libraries inside.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

add_library(coppice_library SHARED "$<TARGET_OBJECTS:coppice_api>" "$<TARGET_OBJECTS:coppice_base>")
target_link_libraries(coppice_library PRIVATE coppice_api)
target_link_options(coppice_library PRIVATE "LINKER:--version-script,${PROJECT_SOURCE_DIR}/cmake/public_symbols.map" "LINKER:--no-undefined")
set_target_properties(coppice_library PROPERTIES OUTPUT_NAME coppice EXPORT_NAME coppice LINKER_LANGUAGE CXX
  LINK_DEPENDS "${PROJECT_SOURCE_DIR}/cmake/public_symbols.map"
  VERSION "${PROJECT_VERSION}" SOVERSION "${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}")
target_compile_features(coppice_library INTERFACE cxx_std_20)

set(public_headers coppice.h api/api.h base/error.h base/interrupt.h base/log.h base/progress.h base/version.h)
foreach(header ${public_headers})
  get_filename_component(folder "coppice/${header}" DIRECTORY)
  install(FILES "coppice/${header}" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/${folder}" COMPONENT library)
endforeach()

install(TARGETS coppice RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT library)
install(TARGETS coppice_library EXPORT coppice LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT library
  INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
set(config_folder "${CMAKE_INSTALL_LIBDIR}/cmake/coppice")
install(EXPORT coppice NAMESPACE coppice:: FILE coppice-config.cmake DESTINATION "${config_folder}" COMPONENT library)
write_basic_package_version_file("${CMAKE_BINARY_DIR}/coppice-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_BINARY_DIR}/coppice-config-version.cmake" DESTINATION "${config_folder}" COMPONENT library)
