# Test programs, made the same way everywhere:
#
#   cnode_test(test_reader LINK cnode_etf)            tests/cpp/test_reader.cpp -> <build>/tests/test_reader
#   cnode_test(test_mailbox LINK cnode_mailbox THREADED)   the same, and run under tsan too
#   cnode_fuzz(fuzz_frame LINK cnode_dist)            tests/fuzz/fuzz_frame.cpp -> <build>/fuzz/fuzz_frame
#
# The source file is <name>.cpp unless SOURCES says otherwise. The driver behind `make test` finds the programs by
# where they lie, <build>/tests and <build>/fuzz; <build>/tests/threaded.txt names the thread-heavy ones.
include(Warnings)

option(CNODE_TESTS "Build the C++ unit tests" ON)
option(CNODE_FUZZ "Build the libFuzzer targets (needs clang)" OFF)

if(CNODE_FUZZ AND NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  message(FATAL_ERROR "CNODE_FUZZ needs clang: cmake --preset fuzz")
endif()

function(cnode_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "THREADED" "" "SOURCES;LINK")
  if(NOT CNODE_TESTS)
    return()
  endif()
  find_package(Catch2Any REQUIRED)
  if(NOT arg_SOURCES)
    set(arg_SOURCES ${name}.cpp)
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LINK} sidewinder_catch_main)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  cnode_warnings(${name})
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_property(GLOBAL APPEND PROPERTY CNODE_TEST_TARGETS ${name})
  if(arg_THREADED)
    set_tests_properties(${name} PROPERTIES LABELS threaded)
    set_property(GLOBAL APPEND PROPERTY CNODE_THREADED_TESTS ${name})
  endif()
endfunction()

function(cnode_fuzz name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINK")
  if(NOT CNODE_FUZZ)
    return()
  endif()
  if(NOT arg_SOURCES)
    set(arg_SOURCES ${name}.cpp)
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LINK})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/fuzz)
  cnode_warnings(${name})
  set_property(GLOBAL APPEND PROPERTY CNODE_FUZZ_TARGETS ${name})
endfunction()

# Called once, after the last cnode_test and cnode_fuzz: targets `cnode_tests`, `cnode_threaded_tests`, `cnode_fuzzers`.
function(cnode_testing_summary)
  get_property(tests GLOBAL PROPERTY CNODE_TEST_TARGETS)
  get_property(threaded GLOBAL PROPERTY CNODE_THREADED_TESTS)
  get_property(fuzzers GLOBAL PROPERTY CNODE_FUZZ_TARGETS)
  add_custom_target(cnode_tests DEPENDS ${tests})
  add_custom_target(cnode_threaded_tests DEPENDS ${threaded})
  add_custom_target(cnode_fuzzers DEPENDS ${fuzzers})
  list(JOIN tests "\n" test_lines)
  list(JOIN threaded "\n" threaded_lines)
  list(JOIN fuzzers "\n" fuzz_lines)
  file(WRITE ${PROJECT_BINARY_DIR}/tests/list.txt "${test_lines}\n")
  file(WRITE ${PROJECT_BINARY_DIR}/tests/threaded.txt "${threaded_lines}\n")
  file(WRITE ${PROJECT_BINARY_DIR}/fuzz/list.txt "${fuzz_lines}\n")
endfunction()
