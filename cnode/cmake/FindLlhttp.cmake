# Llhttp::llhttp, the HTTP parser of Node.js. Debian 13 has it as libllhttp-dev; for Debian 12 tests/run/llhttp builds it.
find_path(Llhttp_INCLUDE_DIR llhttp.h)
find_library(Llhttp_LIBRARY NAMES libllhttp.a llhttp)  # see below
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Llhttp REQUIRED_VARS Llhttp_LIBRARY Llhttp_INCLUDE_DIR)
if(Llhttp_FOUND AND NOT TARGET Llhttp::llhttp)
  add_library(Llhttp::llhttp UNKNOWN IMPORTED)
  set_target_properties(Llhttp::llhttp PROPERTIES IMPORTED_LOCATION ${Llhttp_LIBRARY}
                        INTERFACE_INCLUDE_DIRECTORIES ${Llhttp_INCLUDE_DIR})
  # The program exports its symbols for extension modules. httptools, under uvicorn, brings an llhttp of its own, perhaps of
  # another version, whose calls would end up in ours.
  target_link_options(Llhttp::llhttp INTERFACE -Wl,--exclude-libs,libllhttp.a)
endif()
mark_as_advanced(Llhttp_INCLUDE_DIR Llhttp_LIBRARY)
