// Resolving what needs no resolving: hosts and ports that are numbers already.
//
// libc itself is asked, told to look nothing up, so its answer is the one it would give in a
// thread, and comes without one.
#pragma once

#include "cnode/loop/loop.hpp"

namespace loop {

// Adds _getaddrinfo_now(host, port, family, type, proto, flags) to the loop's type: a list as
// socket.getaddrinfo() makes it, or None for whatever is to be asked in a thread, wrong arguments
// and errors among it.
int resolve_exec(PyObject* module, State& state);

}  // namespace loop
