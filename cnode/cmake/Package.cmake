# What `cmake --install` puts where, below /usr unless told otherwise, and the Debian package that CPack makes of it
# (deploy/debian/build, which also compiles the Erlang application).
#
#   bin/sidewinder                          the program
#   lib/sidewinder/python                   its Python packages; the native modules are in the program
#   lib/erlang/lib/sidewinder-VERSION       the Erlang application, where a plain `erl` finds it
#   lib/systemd/system/sidewinder.service, /etc/sidewinder/sidewinder.toml
#   share/man/man1, share/doc/sidewinder
set(CNODE_APPLICATION ${PROJECT_SOURCE_DIR}/_build/deb/lib/sidewinder CACHE PATH "The compiled Erlang application")
set(debian ${PROJECT_SOURCE_DIR}/deploy/debian)
set(generated ${PROJECT_BINARY_DIR}/package)

install(TARGETS sidewinder RUNTIME DESTINATION bin)
cnode_install_packages(lib/sidewinder/python erlang erlang_loop erlang_web)
install(DIRECTORY ${CNODE_APPLICATION}/ebin DESTINATION lib/erlang/lib/sidewinder-${PROJECT_VERSION})
install(FILES ${PROJECT_SOURCE_DIR}/deploy/systemd/sidewinder.service DESTINATION lib/systemd/system)
install(FILES ${PROJECT_SOURCE_DIR}/deploy/systemd/sidewinder.toml DESTINATION /etc/sidewinder)
install(FILES ${debian}/copyright DESTINATION share/doc/sidewinder)
install(FILES ${generated}/changelog.gz DESTINATION share/doc/sidewinder)
install(FILES ${generated}/sidewinder.1.gz DESTINATION share/man/man1)

add_custom_target(package_documents
  COMMAND ${Python3_EXECUTABLE} ${debian}/documents.py $<TARGET_FILE:sidewinder> ${PROJECT_SOURCE_DIR} ${generated}
  VERBATIM)
add_dependencies(package_documents sidewinder)

file(CONFIGURE OUTPUT ${generated}/conffiles CONTENT "/etc/sidewinder/sidewinder.toml\n")
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME sidewinder)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_CONTACT "Sidewinder maintainers <maintainers@users.noreply.h-seed-50239a53.example>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Python as a node of an Erlang cluster")
set(CPACK_PACKAGE_DESCRIPTION
    "A process with Python inside that joins a BEAM cluster as a hidden node.
Erlang, Elixir and Gleam nodes call Python with erpc, gen_server calls,
messages, monitors and links. A crash of Python code costs this one node
and never the BEAM.")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_SET_DESTDIR ON)
set(CPACK_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION interpreters)
set(CPACK_DEBIAN_PACKAGE_PRIORITY optional)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_DEPENDS "libpython${Python3_VERSION_MAJOR}.${Python3_VERSION_MINOR}-stdlib")
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS "erlang-base")
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${debian}/postinst ${debian}/prerm ${debian}/postrm ${generated}/conffiles)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
include(CPack)
