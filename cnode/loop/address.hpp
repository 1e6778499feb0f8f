// Socket addresses as Python writes them.
#pragma once

#include <sys/socket.h>

#include "cnode/py/python.hpp"

namespace loop {

// (host, port), (host, port, flow info, scope id), a path or an abstract name; null with an
// exception set.
PyObject* address_object(const sockaddr* address, socklen_t size);

// The address that `object` is to a socket of `family`, if that can be told without resolving
// names: false, with no exception set, for everything else, right or wrong. That is for the socket
// object's own methods.
bool parse_address(int family, PyObject* object, sockaddr_storage& address, socklen_t& size);

}  // namespace loop
