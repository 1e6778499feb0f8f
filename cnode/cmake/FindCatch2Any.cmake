# FindCatch2Any: one target for both major versions of Catch2 (Debian 12 has 2, later suites have 3).
#
#   sidewinder_catch_main   the library a test program links: Catch2 and its main(); tests include
#                           "tests/cpp/catch.hpp", which knows where each version keeps its header
find_package(Catch2 QUIET)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Catch2Any
  REQUIRED_VARS Catch2_DIR
  VERSION_VAR Catch2_VERSION
  REASON_FAILURE_MESSAGE "install catch2 (Debian), or set Catch2_ROOT")

if(Catch2Any_FOUND AND NOT TARGET sidewinder_catch_main)
  if(TARGET Catch2::Catch2WithMain)
    add_library(sidewinder_catch_main INTERFACE)
    target_link_libraries(sidewinder_catch_main INTERFACE Catch2::Catch2WithMain)
  else()
    set(_main "${CMAKE_BINARY_DIR}/catch_main.cpp")
    file(CONFIGURE OUTPUT "${_main}" CONTENT "#define CATCH_CONFIG_MAIN\n#include <catch2/catch.hpp>\n" @ONLY)
    add_library(sidewinder_catch_main STATIC "${_main}")
    target_link_libraries(sidewinder_catch_main PUBLIC Catch2::Catch2)
    target_compile_options(sidewinder_catch_main PRIVATE -O0)
  endif()
  target_compile_features(sidewinder_catch_main INTERFACE cxx_std_20)
endif()
