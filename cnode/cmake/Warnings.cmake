# cnode_warnings(<target>...): the project's warnings, all of them errors, for our own targets only.
option(CNODE_WERROR "Treat compiler warnings as errors" ON)

function(cnode_warnings)
  set_property(GLOBAL APPEND PROPERTY CNODE_TARGETS ${ARGN})
  foreach(target IN LISTS ARGN)
    target_compile_options(${target} PRIVATE
      -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual
      $<$<BOOL:${CNODE_WERROR}>:-Werror>)
    # asio's coroutine frames trip both in GCC once the optimizer sees through them.
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      target_compile_options(${target} PRIVATE
        -Wno-mismatched-new-delete -Wno-error=maybe-uninitialized -Wno-error=array-bounds)
    endif()
  endforeach()
endfunction()
