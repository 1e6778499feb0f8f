// Handle: one callback with its arguments and its context, as asyncio.Handle; TimerHandle: with a
// time.
//
// Arguments lie in the handle itself, and handles are recycled when the last reference to them is
// gone, so a callback costs no allocation of its own. A TimerHandle is an asyncio.TimerHandle,
// whose slots stay unused.
#pragma once

#include <cstdint>

#include "cnode/loop/state.hpp"

namespace loop {

class Loop;

struct Handle {
  static constexpr int kInline = 3;  // arguments that need no block of their own

  PyObject* self;  // the Python object these fields are part of
  Loop* loop;      // lives as long as `loop_object`
  Shared* shared;
  PyObject* loop_object;
  PyObject* callback;  // null once cancelled
  PyObject* context;
  PyObject** arguments;  // with a free place before the first, for vectorcall
  PyObject* inline_arguments[kInline + 1];
  PyObject* source_traceback;  // null unless made in debug mode
  PyObject* repr;              // what it was before it was cancelled, in debug mode
  std::uint32_t count;
  bool cancelled;
  bool running;
  bool telling;  // its repr is made while it is being cancelled
  bool timer;
};

struct Timer : Handle {
  static constexpr std::size_t kOffset =
      128;  // in the object, behind the fields of asyncio.TimerHandle
  static constexpr std::size_t kNowhere = SIZE_MAX;
  double when;        // seconds, as Loop::time()
  std::size_t index;  // in the heap; kNowhere outside
};

// A handle for `callback` with `count` arguments; the context is the current one's copy if null.
// Null with an exception set when there is no memory.
Handle* new_handle(Loop& loop, PyObject* callback, PyObject* const* arguments, std::size_t count,
                   PyObject* context, bool tracked);
Timer* new_timer(Loop& loop, double when, PyObject* callback, PyObject* const* arguments,
                 std::size_t count, PyObject* context, bool tracked);

// The garbage collector does not see a handle that waits in its loop and that nobody else holds:
// the loop shows what is in it as if it were the loop's own. One that others hold is shown to the
// collector when the loop gives it back, and when the loop stops.
void give_back(Handle& handle);  // takes the loop's reference
int visit_pending(Handle& handle, visitproc visit, void* arg);

void cancel_handle(Handle& handle);

int handle_exec(PyObject* module, State& state);
void free_handles(Shared& shared);

}  // namespace loop
