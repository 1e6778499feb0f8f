// The Python type of a loop: argument checks and the names that asyncio's own classes use.

#include <pthread.h>

#include <cmath>
#include <cstring>
#include <system_error>

#include "cnode/loop/loop.hpp"
#include "cnode/loop/sockets.hpp"
#include "cnode/py/error.hpp"

namespace loop {
namespace {

Loop& of(PyObject* self) { return *reinterpret_cast<LoopObject*>(self)->loop; }

PyObject* make(PyTypeObject* type, PyObject*, PyObject* options) {
  State* state = state_of_type(type);
  if (state == nullptr) return nullptr;
  const char* driver = "epoll";
  if (options != nullptr) {
    PyObject* wanted = PyDict_GetItemString(options, "driver");
    if (wanted != nullptr && wanted != Py_None) {
      driver = PyUnicode_Check(wanted) ? PyUnicode_AsUTF8(wanted) : "";
      if (driver == nullptr) return nullptr;
    }
  }
  std::unique_ptr<Poller> poller;
  try {
    if (std::strcmp(driver, "epoll") == 0) {
      poller = std::make_unique<EpollPoller>();
    } else if (std::strcmp(driver, "asio") == 0) {
      poller = std::make_unique<AsioPoller>();
    } else {
      PyErr_SetString(PyExc_ValueError, "driver must be 'epoll' or 'asio'");
      return nullptr;
    }
  } catch (const std::system_error& error) {
    errno = error.code().value();
    return PyErr_SetFromErrno(PyExc_OSError);
  }
  PyObject* self = type->tp_alloc(type, 0);
  if (self == nullptr) return nullptr;
  reinterpret_cast<LoopObject*>(self)->loop = new Loop(*state, self, std::move(poller));
  return self;
}

int ignore_arguments(PyObject*, PyObject*, PyObject*) { return 0; }

void dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  delete std::exchange(reinterpret_cast<LoopObject*>(self)->loop, nullptr);
  type->tp_free(self);
  Py_DECREF(type);
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Loop* loop = reinterpret_cast<LoopObject*>(self)->loop;
  return loop == nullptr ? 0 : loop->traverse(visit, arg);
}

int clear(PyObject* self) {
  Loop* loop = reinterpret_cast<LoopObject*>(self)->loop;
  if (loop != nullptr) loop->clear();
  return 0;
}

// --- scheduling

bool check_open(Loop& loop) {
  if (!loop.closed) return true;
  PyErr_SetString(PyExc_RuntimeError, "Event loop is closed");
  return false;
}

unsigned long this_thread() { return PyThread_get_thread_ident(); }

bool check_in_debug(Loop& loop, PyObject* callback, const char* method, bool any_thread) {
  if (!any_thread && loop.thread != 0 && loop.thread != this_thread()) {
    PyErr_SetString(
        PyExc_RuntimeError,
        "Non-thread-safe operation invoked on an event loop other than the current one");
    return false;
  }
  PyObject* done = PyObject_CallMethod(loop.object(), "_check_callback", "Os", callback, method);
  Py_XDECREF(done);
  return done != nullptr;
}

// The context of `context=`, null for none or None. False with an exception set.
bool context_option(State& state, PyObject* const* values, PyObject* names, PyObject*& context) {
  context = nullptr;
  if (names == nullptr) return true;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    if (name != state.names.context && PyUnicode_Compare(name, state.names.context) != 0) {
      PyErr_Format(PyExc_TypeError, "got an unexpected keyword argument '%U'", name);
      return false;
    }
    context = values[i] == Py_None ? nullptr : values[i];
  }
  if (context != nullptr && !PyContext_CheckExact(context)) {
    PyErr_SetString(PyExc_TypeError, "a context must be a contextvars.Context");
    return false;
  }
  return true;
}

bool too_few(Py_ssize_t count, Py_ssize_t needed, const char* what) {
  if (count >= needed) return false;
  PyErr_SetString(PyExc_TypeError, what);
  return true;
}

PyObject* schedule(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names,
                   bool any_thread) {
  Loop& loop = of(self);
  PyObject* context = nullptr;
  if (too_few(count, 1, "call_soon() missing 1 required positional argument: 'callback'") ||
      !context_option(loop.state(), arguments + count, names, context) || !check_open(loop))
    return nullptr;
  if (loop.debug() &&
      !check_in_debug(loop, arguments[0], any_thread ? "call_soon_threadsafe" : "call_soon",
                      any_thread))
    return nullptr;
  PyObject* handle = nullptr;
  if (loop.call_soon(arguments[0], arguments + 1, count - 1, context, handle) < 0) return nullptr;
  return handle;
}

PyObject* call_soon(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  return schedule(self, arguments, count, names, false);
}

PyObject* call_soon_threadsafe(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                               PyObject* names) {
  PyObject* handle = schedule(self, arguments, count, names, true);
  if (handle != nullptr) of(self).inbox().knock();
  return handle;
}

PyObject* schedule_at(PyObject* self, double when, PyObject* const* arguments, Py_ssize_t count,
                      PyObject* names) {
  Loop& loop = of(self);
  PyObject* context = nullptr;
  if (!context_option(loop.state(), arguments + count, names, context) || !check_open(loop))
    return nullptr;
  if (std::isnan(when)) {
    PyErr_SetString(PyExc_ValueError, "a time must not be NaN");
    return nullptr;
  }
  if (loop.debug() && !check_in_debug(loop, arguments[1], "call_at", false)) return nullptr;
  PyObject* handle = nullptr;
  if (loop.call_at(when, arguments[1], arguments + 2, count - 2, context, handle) < 0)
    return nullptr;
  return handle;
}

PyObject* call_later(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                     PyObject* names) {
  if (too_few(count, 2, "call_later() missing required arguments: 'delay' and 'callback'"))
    return nullptr;
  if (arguments[0] == Py_None) {
    PyErr_SetString(PyExc_TypeError, "delay must not be None");
    return nullptr;
  }
  const double delay = PyFloat_AsDouble(arguments[0]);
  if (delay == -1 && PyErr_Occurred() != nullptr) return nullptr;
  return schedule_at(self, of(self).now() + delay, arguments, count, names);
}

PyObject* call_at(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  if (too_few(count, 2, "call_at() missing required arguments: 'when' and 'callback'"))
    return nullptr;
  if (arguments[0] == Py_None) {
    PyErr_SetString(PyExc_TypeError, "when cannot be None");
    return nullptr;
  }
  const double when = PyFloat_AsDouble(arguments[0]);
  if (when == -1 && PyErr_Occurred() != nullptr) return nullptr;
  return schedule_at(self, when, arguments, count, names);
}

PyObject* loop_time(PyObject*, PyObject*) { return PyFloat_FromDouble(Loop::clock()); }

// A program that skips time puts a function of its own in the place of time(); null takes it back.
PyObject* set_clock(PyObject* self, PyObject* clock) {
  of(self).set_clock(clock == Py_None ? nullptr : clock);
  Py_RETURN_NONE;
}

// --- running

PyObject* run(PyObject* self, PyObject*) {
  Loop& loop = of(self);
  const int status = loop.run();
  loop.settle();
  if (status < 0) return nullptr;
  Py_RETURN_NONE;
}

PyObject* turn(PyObject* self, PyObject* may_wait) {
  Loop& loop = of(self);
  if (!check_open(loop)) return nullptr;
  const int wait = PyObject_IsTrue(may_wait);
  if (wait < 0) return nullptr;
  const int status = loop.turn(wait != 0);
  loop.settle();
  if (status < 0) return nullptr;
  Py_RETURN_NONE;
}

PyObject* until_next(PyObject* self, PyObject*) {
  const double seconds = of(self).until_next();
  if (seconds < 0) Py_RETURN_NONE;
  return PyFloat_FromDouble(seconds);
}

PyObject* stop(PyObject* self, PyObject*) {
  of(self).stopping = true;
  Py_RETURN_NONE;
}

PyObject* is_running(PyObject* self, PyObject*) {
  return PyBool_FromLong(of(self).thread != 0 ? 1 : 0);
}
PyObject* is_closed(PyObject* self, PyObject*) { return PyBool_FromLong(of(self).closed ? 1 : 0); }
PyObject* get_debug(PyObject* self, PyObject*) { return PyBool_FromLong(of(self).debug() ? 1 : 0); }

PyObject* close_core(PyObject* self, PyObject*) {
  of(self).close();
  Py_RETURN_NONE;
}

PyObject* knock(PyObject* self, PyObject*) {
  of(self).inbox().knock();
  Py_RETURN_NONE;
}

PyObject* poll_fd(PyObject* self, PyObject*) {
  if (!check_open(of(self))) return nullptr;
  return PyLong_FromLong(of(self).poller().descriptor());
}

PyObject* driver(PyObject* self, void*) { return PyUnicode_FromString(of(self).poller().name()); }

PyObject* do_nothing(PyObject*, PyObject*) { Py_RETURN_NONE; }

// --- descriptors

int descriptor_of(PyObject* object) {
  const int fd = PyObject_AsFileDescriptor(object);
  if (fd >= 0 || PyLong_Check(object)) return fd;
  // As selectors say it.
  if (PyErr_ExceptionMatches(PyExc_TypeError) != 0) {
    PyErr_Format(PyExc_ValueError, "Invalid file object: %R", object);
  }
  return fd;
}

PyObject* add(PyObject* self, PyObject* const* arguments, Py_ssize_t count, Side side) {
  Loop& loop = of(self);
  if (too_few(count, 2, "missing required arguments: 'fd' and 'callback'") || !check_open(loop))
    return nullptr;
  const int fd = descriptor_of(arguments[0]);
  if (fd < 0) return nullptr;
  Handle* handle = new_handle(loop, arguments[1], arguments + 2, count - 2, nullptr, true);
  if (handle == nullptr) return nullptr;
  PyObject* object = Py_NewRef(handle->self);
  Ready before;
  if (loop.watch(fd, side, {handle, nullptr}, before) < 0) {
    Py_DECREF(object);
    return nullptr;
  }
  if (before) {
    if (Handle* replaced = before.handle()) cancel_handle(*replaced);
    Py_DECREF(before.object());
  }
  return object;
}

PyObject* remove(PyObject* self, PyObject* descriptor, Side side) {
  Loop& loop = of(self);
  if (loop.closed) Py_RETURN_FALSE;
  const int fd = descriptor_of(descriptor);
  if (fd < 0 && PyErr_Occurred() != nullptr) return nullptr;
  Ready before;
  if (!loop.unwatch(fd, side, before)) Py_RETURN_FALSE;
  const bool waited = !idle_socket_watch(before, side);
  if (Handle* handle = before.handle()) cancel_handle(*handle);
  Py_DECREF(before.object());
  return PyBool_FromLong(waited ? 1 : 0);
}

PyObject* add_reader(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return add(self, arguments, count, Side::kRead);
}
PyObject* add_writer(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return add(self, arguments, count, Side::kWrite);
}
PyObject* remove_reader(PyObject* self, PyObject* fd) { return remove(self, fd, Side::kRead); }
PyObject* remove_writer(PyObject* self, PyObject* fd) { return remove(self, fd, Side::kWrite); }

PyObject* transport_of(PyObject* self, PyObject* descriptor) {
  const int fd = static_cast<int>(PyLong_AsLong(descriptor));
  if (fd == -1 && PyErr_Occurred() != nullptr) return nullptr;
  PyObject* owner = of(self).owner(fd);
  return Py_NewRef(owner == nullptr ? Py_None : owner);
}

PyObject* set_owner(PyObject* self, PyObject* arguments) {
  int fd = -1;
  PyObject* transport = nullptr;
  if (PyArg_ParseTuple(arguments, "iO", &fd, &transport) == 0) return nullptr;
  if (fd < 0) Py_RETURN_NONE;
  of(self).own(fd, transport == Py_None ? nullptr : transport);
  Py_RETURN_NONE;
}

// --- attributes that asyncio's base classes set and read

PyObject* get_closed(PyObject* self, void*) { return is_closed(self, nullptr); }
int set_closed(PyObject* self, PyObject* value, void*) {
  const int truth = value == nullptr ? 0 : PyObject_IsTrue(value);
  if (truth >= 0) of(self).closed = truth != 0;
  return truth < 0 ? -1 : 0;
}
PyObject* get_stopping(PyObject* self, void*) { return PyBool_FromLong(of(self).stopping ? 1 : 0); }
int set_stopping(PyObject* self, PyObject* value, void*) {
  const int truth = value == nullptr ? 0 : PyObject_IsTrue(value);
  if (truth >= 0) of(self).stopping = truth != 0;
  return truth < 0 ? -1 : 0;
}
PyObject* get_debug_flag(PyObject* self, void*) { return get_debug(self, nullptr); }
int set_debug_flag(PyObject* self, PyObject* value, void*) {
  const int truth = value == nullptr ? 0 : PyObject_IsTrue(value);
  if (truth >= 0) of(self).set_debug(truth != 0);
  return truth < 0 ? -1 : 0;
}
PyObject* get_thread(PyObject* self, void*) {
  if (of(self).thread == 0) Py_RETURN_NONE;
  return PyLong_FromUnsignedLong(of(self).thread);
}
int set_thread(PyObject* self, PyObject* value, void*) {
  unsigned long thread = 0;
  if (value != nullptr && value != Py_None) {
    thread = PyLong_AsUnsignedLong(value);
    if (thread == static_cast<unsigned long>(-1) && PyErr_Occurred() != nullptr) return -1;
  }
  of(self).thread = thread;
  return 0;
}
PyObject* get_slow(PyObject* self, void*) { return PyFloat_FromDouble(of(self).slow_callback); }
int set_slow(PyObject* self, PyObject* value, void*) {
  const double seconds = value == nullptr ? 0.1 : PyFloat_AsDouble(value);
  if (seconds == -1 && PyErr_Occurred() != nullptr) return -1;
  of(self).slow_callback = seconds;
  return 0;
}

template <typename Function>
PyCFunction method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef g_methods[] = {
    {"call_soon", method(call_soon), METH_FASTCALL | METH_KEYWORDS,
     "call_soon(callback, *args, context=None): run it in the next turn."},
    {"call_soon_threadsafe", method(call_soon_threadsafe), METH_FASTCALL | METH_KEYWORDS,
     "call_soon_threadsafe(callback, *args, context=None): call_soon() for any thread."},
    {"call_later", method(call_later), METH_FASTCALL | METH_KEYWORDS,
     "call_later(delay, callback, *args, context=None): run it after `delay` seconds, never "
     "before."},
    {"call_at", method(call_at), METH_FASTCALL | METH_KEYWORDS,
     "call_at(when, callback, *args, context=None): run it at a time of the loop's clock."},
    {"time", loop_time, METH_NOARGS, "time(): seconds of the loop's clock, which is monotonic."},
    {"_set_clock", set_clock, METH_O, nullptr},
    {"stop", stop, METH_NOARGS, "stop(): end run_forever() after this turn."},
    {"is_running", is_running, METH_NOARGS, "is_running(): whether the loop runs."},
    {"is_closed", is_closed, METH_NOARGS, "is_closed(): whether close() was called."},
    {"get_debug", get_debug, METH_NOARGS, "get_debug(): whether debug mode is on."},
    {"poll_fd", poll_fd, METH_NOARGS,
     "poll_fd(): a descriptor that is readable when step() would find something to do."},
    {"_run", run, METH_NOARGS, nullptr},
    {"_turn", turn, METH_O, nullptr},
    {"_until_next", until_next, METH_NOARGS, nullptr},
    {"_close_core", close_core, METH_NOARGS, nullptr},
    {"_write_to_self", knock, METH_NOARGS, nullptr},
    {"_timer_handle_cancelled", do_nothing, METH_O, nullptr},
    {"_add_reader", method(add_reader), METH_FASTCALL, nullptr},
    {"_add_writer", method(add_writer), METH_FASTCALL, nullptr},
    {"_remove_reader", remove_reader, METH_O, nullptr},
    {"_remove_writer", remove_writer, METH_O, nullptr},
    {"_transport_of", transport_of, METH_O, nullptr},
    {"_set_owner", set_owner, METH_VARARGS, nullptr},
    {}};

PyGetSetDef g_attributes[] = {
    {"_closed", get_closed, set_closed, nullptr, nullptr},
    {"_stopping", get_stopping, set_stopping, nullptr, nullptr},
    {"_debug", get_debug_flag, set_debug_flag, nullptr, nullptr},
    {"_thread_id", get_thread, set_thread, nullptr, nullptr},
    {"slow_callback_duration", get_slow, set_slow,
     "Seconds from which debug mode reports a callback.", nullptr},
    {"driver", driver, nullptr, "How the loop waits: 'epoll' or 'asio'.", nullptr},
    {}};

PyType_Slot g_slots[] = {{Py_tp_new, reinterpret_cast<void*>(make)},
                         {Py_tp_init, reinterpret_cast<void*>(ignore_arguments)},
                         {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                         {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                         {Py_tp_clear, reinterpret_cast<void*>(clear)},
                         {Py_tp_methods, g_methods},
                         {Py_tp_getset, g_attributes},
                         {0, nullptr}};

PyType_Spec g_spec{"erlang_loop._core.Loop", sizeof(LoopObject), 0,
                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, g_slots};

}  // namespace

Loop* loop_of(PyObject* object) {
  State* state = state_of_type(Py_TYPE(object));
  if (state != nullptr && PyObject_TypeCheck(object, state->loop_type))
    return reinterpret_cast<LoopObject*>(object)->loop;
  PyErr_Clear();
  PyErr_Format(PyExc_TypeError, "an ErlangEventLoop was expected, got %R", object);
  return nullptr;
}

int add_loop_methods(State& state, PyMethodDef* methods) {
  for (PyMethodDef* each = methods; each->ml_name != nullptr; ++each) {
    PyObject* descriptor = PyDescr_NewMethod(state.loop_type, each);
    if (descriptor == nullptr) return -1;
    const int status = PyObject_SetAttrString(reinterpret_cast<PyObject*>(state.loop_type),
                                              each->ml_name, descriptor);
    Py_DECREF(descriptor);
    if (status < 0) return -1;
  }
  return 0;
}

int loop_exec(PyObject* module, State& state) {
  state.loop_type =
      reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &g_spec, nullptr));
  if (state.loop_type == nullptr) return -1;
  return PyModule_AddType(module, state.loop_type);
}

}  // namespace loop
