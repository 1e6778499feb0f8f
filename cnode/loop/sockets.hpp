// What sock_recv, sock_sendall and their like do without Python: the system call, and the wait if
// it would block.
//
//   _recv_now ──▶ recv ── data ──────────────────────────────────────▶ bytes
//                   └─ would block ─▶ a future ◀─ recv ◀─ readable ─┘ a SocketWatch
//
// A socket's watch stays registered from one wait to the next, edge-triggered, so that a wait costs
// no system call; it goes when events come that nobody waits for. It knows its socket, so that a
// descriptor that was closed and opened again is registered anew.
#pragma once

#include "cnode/loop/loop.hpp"

namespace loop {

// Whether nobody waits for that side of a socket's watch: such a watcher is ours alone, and
// remove_reader() knows nothing of it.
bool idle_socket_watch(const Ready& watcher, Side side);

// Adds the methods to the loop's type, which must be there.
int sockets_exec(PyObject* module, State& state);

}  // namespace loop
