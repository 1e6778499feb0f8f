// Flow: the flow control of a transport's write side, as asyncio defines it: the protocol is told
// to pause when more than `high` bytes wait, and to resume when `low` or fewer are left.
#pragma once

#include <cstddef>

#include "cnode/loop/loop.hpp"

namespace loop {

struct Flow {
  static constexpr std::size_t kHigh = 64 * 1024;

  std::size_t high = kHigh;
  std::size_t low = kHigh / 4;
  bool paused = false;  // what the protocol was told last

  // Tells the protocol if `waiting` bytes change something. What its method raises goes to the
  // loop's exception handler. -1 with an exception set for what has to leave the loop.
  int maybe_pause(Loop& loop, PyObject* transport, PyObject* protocol, std::size_t waiting);
  int maybe_resume(Loop& loop, PyObject* transport, PyObject* protocol, std::size_t waiting);

  // set_write_buffer_limits(high=None, low=None). -1 with ValueError or TypeError set.
  int set_limits(PyObject* arguments, PyObject* options);
  PyObject* limits() const { return Py_BuildValue("nn", low, high); }
};

// call_exception_handler({message, exception, transport, protocol}); takes the exception that is
// set. -1 as above.
int tell_exception(Loop& loop, const char* message, PyObject* transport, PyObject* protocol);

}  // namespace loop
