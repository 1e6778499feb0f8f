// StreamTransport: the asyncio transport of a connected stream socket (TCP, Unix), and the
// accepting of such.
//
//   readable ──▶ recv into the loop's buffer, the protocol's, or a bytes of its own when much waits
//   ──▶ protocol write() ──▶ send at once; what the kernel refuses, and what follows in the same
//   turn, leaves together by writev
//
// Under the GIL, on the loop's thread, as every asyncio transport.
#pragma once

#include "cnode/loop/loop.hpp"

namespace loop {

int stream_exec(PyObject* module, State& state);

// write() of memory that is good for the time of the call, to a StreamTransport. -1 with an
// exception set.
int stream_write(PyObject* self, const char* data, std::size_t size);

// accept_streams(loop, protocol_factory, sock, server, backlog): accepts up to `backlog`
// connections and makes their transports. Raises OSError for what asyncio does not pass over:
// resources that are used up.
PyObject* accept_streams(PyObject* module, PyObject* arguments);

}  // namespace loop
