# cnode_warnings(<target>...): the project's warnings, all of them errors, for our own targets only.
option(CNODE_WERROR "Treat compiler warnings as errors" ON)

function(cnode_warnings)
  foreach(target IN LISTS ARGN)
    target_compile_options(${target} PRIVATE
      -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual
      $<$<BOOL:${CNODE_WERROR}>:-Werror>)
    # asio's coroutine frames trip these in GCC when the optimizer or a sanitizer is on.
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      target_compile_options(${target} PRIVATE
        $<$<BOOL:${CNODE_WERROR}>:-Wno-error=maybe-uninitialized -Wno-error=mismatched-new-delete>)
    endif()
  endforeach()
endfunction()
