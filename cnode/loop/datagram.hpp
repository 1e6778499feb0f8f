// DatagramTransport: the asyncio transport of a datagram socket (UDP, Unix datagrams and the like).
//
//   readable ──▶ recvmmsg of a few ──▶ datagram_received() for each, then others run
//   sendto() ──▶ sent at once ─ would block ─▶ queue ──▶ sendmmsg when there is room
#pragma once

#include "cnode/loop/loop.hpp"

namespace loop {

// Adds the type, and to the loop's type _new_datagram_transport(sock, protocol, address, waiter,
// extra), whose `sock` is exactly a socket.socket.
int datagram_exec(PyObject* module, State& state);

}  // namespace loop
