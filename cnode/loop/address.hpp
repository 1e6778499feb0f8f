// Socket addresses as Python writes them.
#pragma once

#include <sys/socket.h>

#include "cnode/py/python.hpp"

namespace loop {

// (host, port), (host, port, flow info, scope id), a path or an abstract name; null with an
// exception set.
PyObject* address_object(const sockaddr* address, socklen_t size);

}  // namespace loop
