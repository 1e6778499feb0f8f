# cnode_python_module(<name> <package> <source> LINK <libraries>): an extension module of python/<package>.
#
# For the system's own interpreter it goes where its package lies, so that a checkout can be imported as it is. Builds that
# are not the default one put it into <build>/python beside links to the package's files; sanitized and fuzzing ones and
# the Debian package make none. With CNODE_WHEEL it is for the interpreter that CMake was given, and is installed beside the package's files.
option(CNODE_WHEEL "Build what pip installs: the Python packages and their native modules, no program" OFF)

function(cnode_python_module name package source)
  cmake_parse_arguments(PARSE_ARGV 3 arg "" "" "LINK")
  if(CNODE_SANITIZE OR CNODE_FUZZ OR CNODE_PACKAGE)
    return()
  endif()
  set(directory ${PROJECT_SOURCE_DIR}/python/${package})
  if(CNODE_WHEEL)
    set(directory ${PROJECT_BINARY_DIR}/python/${package})
  elseif(PERF_BUILD)
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
  if(CNODE_WHEEL)
    install(TARGETS ${name} LIBRARY DESTINATION ${package})
  endif()
endfunction()

# cnode_install_packages(<directory>): the packages' own files.
function(cnode_install_packages directory)
  foreach(package IN LISTS ARGN)
    install(DIRECTORY ${PROJECT_SOURCE_DIR}/python/${package} DESTINATION ${directory}
            FILES_MATCHING PATTERN "*.py" PATTERN "*.pyi" PATTERN "py.typed" PATTERN "__pycache__" EXCLUDE)
  endforeach()
endfunction()
