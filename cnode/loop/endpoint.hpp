// Endpoint: what datagram and pipe transports have in common: a file, a protocol that is told of
// it, and the end of both.
//
//   made ──▶ connection_made() ──▶ watched ──▶ close(), abort(), the peer ──▶ connection_lost()
//
// Under the GIL, on the loop's thread. The Python class a transport is of stays a real base: our
// fields come after its own.
#pragma once

#include "cnode/loop/flow.hpp"
#include "cnode/loop/loop.hpp"

namespace loop {

// The context in which a transport was made, entered for a callback from the loop.
class Entered {
 public:
  explicit Entered(PyObject* context);
  ~Entered();
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;

 private:
  PyObject* context_;
  bool entered_;
};

struct Endpoint {
  static constexpr std::size_t kOffset = 128;  // in the object; more than the Python classes need
  static constexpr int kLostWrites = 5;        // from which asyncio warns of writes into nothing

  Shared* shared = nullptr;
  PyObject* dict = nullptr;  // what users hang on it
  PyObject* weakrefs = nullptr;
  PyObject* self = nullptr;
  Loop* loop =
      nullptr;  // lives as long as `loop_object`; null when connection_lost() has been called
  PyObject* loop_object = nullptr;
  PyObject* file = nullptr;  // a socket or a pipe; null when it is closed
  PyObject* protocol = nullptr;
  PyObject* extra = nullptr;
  PyObject* context = nullptr;
  PyObject* waiter = nullptr;  // done when the transport has started
  PyObject* lost_reason = nullptr;
  int fd = -1;
  int lost = 0;  // connection_lost() is called or about to be; counts the writes since
  bool closing = false;
  Flow flow;

  State& state() const { return loop->state(); }
};

template <typename Fields>
Fields& fields_of(PyObject* self) {
  return *reinterpret_cast<Fields*>(reinterpret_cast<char*>(self) + Endpoint::kOffset);
}

// Takes hold of what a new transport works with. -1 with an exception set.
int open_endpoint(Endpoint& endpoint, PyObject* self, Loop& loop, PyObject* file,
                  PyObject* protocol, PyObject* extra);
// connection_made() in the next turn, then `started`, which is to call waiter_done().
int start_endpoint(Endpoint& endpoint, PyObject* waiter, Job started);
int waiter_done(Endpoint& endpoint);

int watch_side(Endpoint& endpoint, Side side, Job job);
void stop_side(Endpoint& endpoint, Side side);
bool watches_side(const Endpoint& endpoint, Side side);

// Calls a method of the protocol in the transport's context; what it raises goes to the loop's
// exception handler. -1 with an exception set for what has to leave the loop.
int tell_protocol(Endpoint& endpoint, PyObject* name, PyObject* const* arguments,
                  std::size_t count);

// The last of it: connection_lost(), and the file is closed. The second does so in the next turn,
// once.
int lose_now(Endpoint& endpoint, PyObject* reason);
void lose_soon(Endpoint& endpoint, PyObject* reason);

// Each type's slots and what its methods have in common.
int traverse_endpoint(Endpoint& endpoint, visitproc visit, void* arg);
void clear_endpoint(Endpoint& endpoint);
void finalize_endpoint(PyObject* self);

// A type with those slots, methods and attributes, below the class `base`.
PyTypeObject* endpoint_type(PyObject* module, const char* name, std::size_t size, PyObject* base,
                            PyType_Slot* slots);

// Methods and attributes that all of them have.
PyObject* endpoint_is_closing(PyObject* self, PyObject*);
PyObject* endpoint_get_protocol(PyObject* self, PyObject*);
PyObject* endpoint_set_protocol(PyObject* self, PyObject* protocol);
PyObject* endpoint_get_extra_info(PyObject* self, PyObject* arguments, PyObject* options);
PyObject* endpoint_limits(PyObject* self, PyObject*);
PyObject* endpoint_loop(PyObject* self, void*);
PyObject* endpoint_protocol(PyObject* self, void*);
PyObject* endpoint_extra(PyObject* self, void*);
PyObject* endpoint_file(PyObject* self, void*);
PyObject* endpoint_fd(PyObject* self, void*);
PyObject* endpoint_lost(PyObject* self, void*);
PyObject* endpoint_closing(PyObject* self, void*);

template <typename Function>
PyCFunction as_method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

inline bool would_block(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

}  // namespace loop
