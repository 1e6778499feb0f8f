# FindErlInterface: ErlInterface::ei, OTP's term codec (`ei`).
#
# The directory is asked from `erl`; ErlInterface_ROOT, or a plain search of the usual places, decides where
# there is no `erl` to ask. libei.a is built position independent, so it may go into a shared object.
find_package(Threads REQUIRED)

if(NOT ErlInterface_ROOT AND NOT ErlInterface_INCLUDE_DIR)
  find_program(ERL_EXECUTABLE erl)
  mark_as_advanced(ERL_EXECUTABLE)
  if(ERL_EXECUTABLE)
    execute_process(
      COMMAND ${ERL_EXECUTABLE} -noinput -boot start_clean
              -eval "io:put_chars(case code:lib_dir(erl_interface) of {error, _} -> []; D -> D end), halt()."
      OUTPUT_VARIABLE _ei_root ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE TIMEOUT 30)
  endif()
endif()
file(GLOB _ei_places /usr/lib/erlang/lib/erl_interface-* /usr/local/lib/erlang/lib/erl_interface-*)

find_path(ErlInterface_INCLUDE_DIR ei.h HINTS ${_ei_root} PATHS ${_ei_places} PATH_SUFFIXES include)
find_library(ErlInterface_LIBRARY ei HINTS ${_ei_root} PATHS ${_ei_places} PATH_SUFFIXES lib)
mark_as_advanced(ErlInterface_INCLUDE_DIR ErlInterface_LIBRARY)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(ErlInterface
  REQUIRED_VARS ErlInterface_LIBRARY ErlInterface_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "install erlang-dev (Debian), or set ErlInterface_ROOT")

if(ErlInterface_FOUND AND NOT TARGET ErlInterface::ei)
  add_library(ErlInterface::ei UNKNOWN IMPORTED)
  set_target_properties(ErlInterface::ei PROPERTIES
    IMPORTED_LOCATION "${ErlInterface_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${ErlInterface_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES Threads::Threads)
endif()
