# CNODE_QUICK: the same program, compiled in a fraction of the time, for builds that are made to be tested (asan, tsan,
# fuzz). What the standard library, Asio, spdlog, CPython and Catch2 have in headers is read once (a precompiled header that
# every target shares), and what of Asio needs no templates of ours is compiled once.
#
# Not for the default build: it has to prove that each file includes what it uses, and Asio inline is what is measured.
option(CNODE_QUICK "Compile with precompiled headers, and Asio separately" OFF)

# Called after find_package and before the first target.
function(cnode_quick_libraries)
  if(NOT CNODE_QUICK)
    return()
  endif()
  set(directory ${PROJECT_BINARY_DIR}/quick)
  file(CONFIGURE OUTPUT ${directory}/asio.cpp CONTENT "#include <asio/impl/src.hpp>\n")
  file(CONFIGURE OUTPUT ${directory}/asio_ssl.cpp CONTENT "#include <asio/ssl/impl/src.hpp>\n")
  add_library(cnode_asio STATIC ${directory}/asio.cpp ${directory}/asio_ssl.cpp)
  target_include_directories(cnode_asio PRIVATE ${OPENSSL_INCLUDE_DIR})
  target_link_libraries(cnode_asio PUBLIC Asio::asio)
  set_property(TARGET Asio::asio APPEND PROPERTY INTERFACE_COMPILE_DEFINITIONS ASIO_SEPARATE_COMPILATION)
  set_property(TARGET Asio::asio APPEND PROPERTY INTERFACE_LINK_LIBRARIES cnode_asio)
endfunction()

# Called after the last target, with all that have our warnings. A precompiled header is good only for sources compiled with
# the same options and definitions, so they get those of all the libraries in it; what is not so does not compile.
function(cnode_quick_headers)
  if(NOT CNODE_QUICK)
    return()
  endif()
  set(directory ${PROJECT_BINARY_DIR}/quick)
  file(CONFIGURE OUTPUT ${directory}/headers.cpp CONTENT "// For the precompiled header.\n")
  add_library(cnode_headers STATIC ${directory}/headers.cpp)
  set(headers "\"${PROJECT_SOURCE_DIR}/cnode/cmake/quick.hpp\"")
  if(CNODE_TESTS)
    list(APPEND headers "\"${PROJECT_SOURCE_DIR}/tests/cpp/catch.hpp\"")
  endif()
  target_precompile_headers(cnode_headers PRIVATE ${headers})
  get_property(targets GLOBAL PROPERTY CNODE_TARGETS)
  cnode_warnings(cnode_headers)  # -Wpedantic changes what is predefined
  foreach(target IN LISTS targets)
    target_precompile_headers(${target} REUSE_FROM cnode_headers)
  endforeach()
  foreach(target IN LISTS targets ITEMS cnode_headers)
    target_link_libraries(${target} PRIVATE spdlog::spdlog Asio::asio Python3::Module)
    target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR})
    # Of libraries and of programs alike, or they would need one each.
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${target} PRIVATE -fPIC)
  endforeach()
endfunction()
