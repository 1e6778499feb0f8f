# cnode_link_python(<program>): CPython into the program itself, where there is a library for that, and shared otherwise.
#
# The interpreter in Debian's libpython*.a is not position-independent and calls itself directly, as /usr/bin/python3 does:
# Python code takes a tenth fewer instructions than with libpython*.so. The program alone is at a fixed address then, not
# its libraries, heap and stacks. A package has the shared one, so that it gets Python's updates without being built anew;
# sanitizers have it, too, for what they intercept.
if(CNODE_PACKAGE OR CNODE_SANITIZE OR CNODE_FUZZ)
  set(_static_python OFF)
else()
  set(_static_python ON)
endif()
option(CNODE_STATIC_PYTHON "Put CPython into the program, where the distribution has the library for it" ${_static_python})

# CNODE_PYTHON_LIBRARIES: the library and what it needs; empty if it is not there or does not link.
function(_find_static_python)
  set(ask "import sysconfig as s; v = s.get_config_var; print(v('LIBPL'), v('LIBRARY'), v('LIBS'), v('SYSLIBS'), v('MODLIBS'))")
  execute_process(COMMAND ${Python3_EXECUTABLE} -c "${ask}" OUTPUT_VARIABLE told OUTPUT_STRIP_TRAILING_WHITESPACE)
  string(REPLACE " " ";" told "${told}")
  list(POP_FRONT told directory name)
  set(library ${directory}/${name})
  if(NOT library MATCHES "\\.a$" OR NOT EXISTS ${library})
    return()
  endif()
  list(FILTER told INCLUDE REGEX "^-l")
  list(REMOVE_DUPLICATES told)
  # All of it: extension modules use what the program itself does not.
  set(libraries -Wl,--whole-archive ${library} -Wl,--no-whole-archive ${told})
  try_compile(links
    SOURCE_FROM_CONTENT main.cpp "#include <Python.h>\nint main(int count, char** values) { return Py_BytesMain(count, values); }\n"
    CMAKE_FLAGS -DINCLUDE_DIRECTORIES=${Python3_INCLUDE_DIRS}
    LINK_OPTIONS -no-pie
    LINK_LIBRARIES ${libraries})
  if(links)
    set(CNODE_PYTHON_LIBRARIES ${libraries} CACHE INTERNAL "")
  endif()
endfunction()

function(cnode_link_python program)
  if(CNODE_STATIC_PYTHON AND NOT DEFINED CNODE_PYTHON_LIBRARIES)
    set(CNODE_PYTHON_LIBRARIES "" CACHE INTERNAL "")
    _find_static_python()
  endif()
  if(CNODE_STATIC_PYTHON AND CNODE_PYTHON_LIBRARIES)
    target_link_libraries(${program} PRIVATE Python3::Module ${CNODE_PYTHON_LIBRARIES})
    target_link_options(${program} PRIVATE -no-pie)
  else()
    target_link_libraries(${program} PRIVATE Python3::Python)
  endif()
endfunction()
