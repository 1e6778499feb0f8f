// ReadPipeTransport and WritePipeTransport: asyncio's transports of the ends of pipes, of sockets
// and of character devices, those of subprocesses among them.
//
//   readable ──▶ read ──▶ data_received()                 the end ──▶ eof_received()
//   write() ──▶ written at once ─ would block ─▶ queue    the reader is gone ──▶ connection_lost()
#pragma once

#include "cnode/loop/loop.hpp"

namespace loop {

// Adds the types, and what makes them to the loop's type: _make_read_pipe_transport and
// _make_write_pipe_transport, which asyncio's connect_read_pipe() and its like call.
int pipes_exec(PyObject* module, State& state);

}  // namespace loop
