// State: what one interpreter's copy of the module keeps: its types, names and the Python objects
// it calls.
//
// Nothing here is shared between interpreters, so loops of sub-interpreters with a GIL of their own
// never meet.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cnode/loop/stream_reader.hpp"
#include "cnode/py/python.hpp"

namespace loop {

// Interned names: for each NAME a member `NAME`, whose text is the same.
#define LOOP_NAMES(X)       \
  X(_attach)                \
  X(_check_callback)        \
  X(_detach)                \
  X(buffer_updated)         \
  X(call_exception_handler) \
  X(cancelled)              \
  X(close)                  \
  X(connect)                \
  X(connection_lost)        \
  X(connection_made)        \
  X(context)                \
  X(create_future)          \
  X(data_received)          \
  X(datagram_received)      \
  X(done)                   \
  X(eof_received)           \
  X(error_received)         \
  X(exception)              \
  X(fileno)                 \
  X(get_buffer)             \
  X(getpeername)            \
  X(getsockname)            \
  X(gettimeout)             \
  X(message)                \
  X(pause_reading)          \
  X(pause_writing)          \
  X(peername)               \
  X(pipe)                   \
  X(pipe_data_received)     \
  X(protocol)               \
  X(recv_into)              \
  X(resume_writing)         \
  X(send)                   \
  X(sendto)                 \
  X(set_exception)          \
  X(set_result)             \
  X(shutdown)               \
  X(socket)                 \
  X(sockname)               \
  X(transport)

struct TlsState;
struct FreeList;

// What objects need to the very end. When an interpreter ends, the collector clears types and the
// module before it frees their last instances, so an object holds this, never the State, in its
// destructor. Gone with the last of both.
struct Shared {
  // Live native objects, for tests that look for leaks.
  std::int64_t handles = 0;
  std::int64_t timers = 0;
  std::int64_t transports = 0;
  std::int64_t loops = 0;
  // Handles that nobody holds any more, kept for the next callback.
  FreeList* free_handles = nullptr;
  FreeList* free_timers = nullptr;
  bool orphan = false;  // the module is gone

  // Counts down for an object that is being freed.
  void leave(std::int64_t& counter) {
    --counter;
    if (orphan && handles + timers + transports + loops == 0) delete this;
  }
};

struct State {
  PyTypeObject* loop_type;
  PyTypeObject* handle_type;
  PyTypeObject* timer_type;
  PyTypeObject* stream_type;
  PyTypeObject* datagram_type;
  PyTypeObject* socket_watch_type;
  PyTypeObject* read_pipe_type;
  PyTypeObject* write_pipe_type;

  // From asyncio and from erlang_loop._glue, looked up when the module is made.
  PyObject* handle_class;      // asyncio.Handle: its repr serves ours
  PyObject* timer_class;       // asyncio.TimerHandle
  PyObject* transport_class;   // asyncio.Transport
  PyObject* datagram_class;    // asyncio.DatagramTransport
  PyObject* read_pipe_class;   // asyncio.ReadTransport
  PyObject* write_pipe_class;  // _glue: asyncio.WriteTransport with flow control
  PyObject* buffered_class;    // asyncio.BufferedProtocol
  PyObject* transport_socket;  // asyncio.trsock.TransportSocket
  PyObject* socket_class;      // socket.socket
  PyObject* socket_family;     // the descriptors of its numbers
  PyObject* socket_kind;
  PyObject* socket_proto;
  PyObject* families;             // _glue: members of socket.AddressFamily by number
  PyObject* kinds;                // _glue: members of socket.SocketKind by number
  PyObject* extract_stack;        // asyncio.format_helpers.extract_stack
  PyObject* report_callback;      // _glue: a callback raised
  PyObject* report_slow;          // _glue: a callback took long
  PyObject* transport_repr;       // _glue: repr of a transport
  PyObject* unclosed;             // _glue: ResourceWarning of a transport
  PyObject* report_fatal;         // _glue: a transport's fatal error
  PyObject* note;                 // _glue: writes to the log
  PyObject* warn_lost_writes;     // _glue: writes to a connection that is gone
  PyObject* sendfile_try_native;  // asyncio.constants._SendfileMode.TRY_NATIVE
  PyObject* call_callback_names;  // ("context",): the only keyword of call_soon and its like
  PyObject* empty_bytes;

#define LOOP_DECLARE_NAME(name) PyObject* name;
  struct Names {
    LOOP_NAMES(LOOP_DECLARE_NAME)
  } names;
#undef LOOP_DECLARE_NAME

  StreamReaderState stream_reader;

  Shared* shared;

  TlsState* tls;
};

State* state_of(PyObject* module);
// The state of the module that made `type` or one of its bases; never null for our own types.
State* state_of_type(PyTypeObject* type);

extern PyModuleDef g_module;

}  // namespace loop
