# cnode_python_module(<name> <package> <source> LINK <libraries>): an extension module for the system's own interpreter.
#
# It goes where its package lies, python/<package>, so that a checkout can be imported as it is. Builds that are not the
# default one put it into <build>/python beside links to the package's files; sanitized and fuzzing ones make none.
function(cnode_python_module name package source)
  cmake_parse_arguments(PARSE_ARGV 3 arg "" "" "LINK")
  if(CNODE_SANITIZE OR CNODE_FUZZ)
    return()
  endif()
  set(directory ${PROJECT_SOURCE_DIR}/python/${package})
  if(PERF_BUILD)
    set(directory ${PROJECT_BINARY_DIR}/python/${package})
    file(MAKE_DIRECTORY ${directory})
    file(GLOB files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/python/${package}/*.py)
    foreach(file IN LISTS files)
      get_filename_component(leaf ${file} NAME)
      file(CREATE_LINK ${file} ${directory}/${leaf} SYMBOLIC)
    endforeach()
  endif()
  Python3_add_library(${name} MODULE WITH_SOABI ${source})
  target_link_libraries(${name} PRIVATE ${arg_LINK})
  set_target_properties(${name} PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${directory})
  cnode_warnings(${name})
endfunction()
