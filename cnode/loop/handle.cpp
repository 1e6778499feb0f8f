#include "cnode/loop/handle.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "cnode/loop/loop.hpp"

namespace loop {

// Objects without an owner. They are neither tracked nor counted while they lie here.
struct FreeList {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  static constexpr std::size_t kRoom = 0;  // a sanitizer is to see every use after the end
#else
  static constexpr std::size_t kRoom = 1024;
#endif
  std::size_t size = 0;
  PyObject* objects[kRoom + 1];
};

namespace {

struct HandleObject {
  PyObject_HEAD PyObject* weakrefs;
  Handle fields;
};

Handle& fields_of(PyObject* self, void* timer) {
  if (timer == nullptr) return reinterpret_cast<HandleObject*>(self)->fields;
  return *reinterpret_cast<Timer*>(reinterpret_cast<char*>(self) + Timer::kOffset);
}

Handle& plain(PyObject* self) { return reinterpret_cast<HandleObject*>(self)->fields; }
Timer& timed(PyObject* self) {
  return *reinterpret_cast<Timer*>(reinterpret_cast<char*>(self) + Timer::kOffset);
}

// A recycled object of `type`, or a new one; not yet tracked.
PyObject* allocate(FreeList& free, PyTypeObject* type) {
  if (free.size > 0) return PyObject_Init(free.objects[--free.size], type);
  return PyObject_GC_New(PyObject, type);
}

bool fill(Handle& handle, PyObject* self, Loop& loop, PyObject* callback,
          PyObject* const* arguments, std::size_t count, PyObject* context) {
  handle.self = self;
  handle.loop = &loop;
  handle.shared = loop.state().shared;
  handle.loop_object = nullptr;
  handle.callback = nullptr;
  handle.source_traceback = nullptr;
  handle.repr = nullptr;
  handle.count = 0;
  handle.cancelled = false;
  handle.running = false;
  handle.telling = false;
  handle.arguments = handle.inline_arguments + 1;
  handle.context = context == nullptr ? PyContext_CopyCurrent() : Py_NewRef(context);
  if (handle.context == nullptr) return false;
  if (count > Handle::kInline) {
    auto** block = static_cast<PyObject**>(PyMem_Malloc((count + 1) * sizeof(PyObject*)));
    if (block == nullptr) {
      PyErr_NoMemory();
      return false;
    }
    handle.arguments = block + 1;
  }
  for (std::size_t i = 0; i < count; ++i) handle.arguments[i] = Py_NewRef(arguments[i]);
  handle.count = static_cast<std::uint32_t>(count);
  handle.callback = Py_NewRef(callback);
  handle.loop_object = Py_NewRef(loop.object());
  return true;
}

void drop_arguments(Handle& handle) {
  PyObject** arguments = handle.arguments;
  const std::uint32_t count = std::exchange(handle.count, 0);
  if (arguments == handle.inline_arguments + 1) {
    for (std::uint32_t i = 0; i < count; ++i) Py_DECREF(arguments[i]);
    return;
  }
  handle.arguments = handle.inline_arguments + 1;
  for (std::uint32_t i = 0; i < count; ++i) Py_DECREF(arguments[i]);
  PyMem_Free(arguments - 1);
}

int clear(Handle& handle) {
  Py_CLEAR(handle.callback);
  drop_arguments(handle);
  Py_CLEAR(handle.context);
  Py_CLEAR(handle.source_traceback);
  Py_CLEAR(handle.repr);
  Py_CLEAR(handle.loop_object);
  return 0;
}

int traverse(Handle& handle, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(handle.self));
  Py_VISIT(handle.callback);
  for (std::uint32_t i = 0; i < handle.count; ++i) Py_VISIT(handle.arguments[i]);
  Py_VISIT(handle.context);
  Py_VISIT(handle.source_traceback);
  Py_VISIT(handle.repr);
  Py_VISIT(handle.loop_object);
  return 0;
}

int plain_traverse(PyObject* self, visitproc visit, void* arg) {
  return traverse(plain(self), visit, arg);
}
int timed_traverse(PyObject* self, visitproc visit, void* arg) {
  return traverse(timed(self), visit, arg);
}
int plain_clear(PyObject* self) { return clear(plain(self)); }
int timed_clear(PyObject* self) { return clear(timed(self)); }

void recycle(PyObject* self, FreeList* free) {
  PyTypeObject* type = Py_TYPE(self);
  if (free != nullptr && free->size < FreeList::kRoom)
    free->objects[free->size++] = self;
  else
    PyObject_GC_Del(self);
  Py_DECREF(type);
}

void plain_dealloc(PyObject* self) {
  Shared& shared = *plain(self).shared;
  PyObject_GC_UnTrack(self);
  if (reinterpret_cast<HandleObject*>(self)->weakrefs != nullptr) PyObject_ClearWeakRefs(self);
  clear(plain(self));
  recycle(self, shared.free_handles);
  shared.leave(shared.handles);
}

void timed_dealloc(PyObject* self) {
  Shared& shared = *timed(self).shared;
  PyObject_GC_UnTrack(self);
  PyObject_ClearWeakRefs(self);
  clear(timed(self));
  recycle(self, shared.free_timers);
  shared.leave(shared.timers);
}

// --- what Python sees

PyObject* or_none(PyObject* object) { return Py_NewRef(object == nullptr ? Py_None : object); }

// A cancelled handle shows no callback, though it holds it as long as it runs.
bool forgotten(const Handle& handle) { return handle.cancelled && !handle.telling; }

PyObject* get_callback(PyObject* self, void* timer) {
  const Handle& handle = fields_of(self, timer);
  return or_none(forgotten(handle) ? nullptr : handle.callback);
}
PyObject* get_arguments(PyObject* self, void* timer) {
  const Handle& handle = fields_of(self, timer);
  if (forgotten(handle)) Py_RETURN_NONE;
  PyObject* tuple = PyTuple_New(handle.count);
  if (tuple == nullptr) return nullptr;
  for (std::uint32_t i = 0; i < handle.count; ++i)
    PyTuple_SET_ITEM(tuple, i, Py_NewRef(handle.arguments[i]));
  return tuple;
}
PyObject* get_cancelled(PyObject* self, void* timer) {
  return PyBool_FromLong(fields_of(self, timer).cancelled ? 1 : 0);
}
PyObject* get_context(PyObject* self, void* timer) {
  return or_none(fields_of(self, timer).context);
}
PyObject* get_loop(PyObject* self, void* timer) {
  return or_none(fields_of(self, timer).loop_object);
}
PyObject* get_source_traceback(PyObject* self, void* timer) {
  return or_none(fields_of(self, timer).source_traceback);
}
int set_source_traceback(PyObject* self, PyObject* value, void* timer) {
  Py_XSETREF(fields_of(self, timer).source_traceback, Py_XNewRef(value));
  return 0;
}
PyObject* get_repr(PyObject* self, void* timer) { return or_none(fields_of(self, timer).repr); }
PyObject* get_when(PyObject* self, void*) { return PyFloat_FromDouble(timed(self).when); }
PyObject* get_scheduled(PyObject* self, void*) {
  return PyBool_FromLong(timed(self).index != Timer::kNowhere ? 1 : 0);
}

PyObject* cancel(PyObject* self, PyObject*) {
  cancel_handle(plain(self));
  Py_RETURN_NONE;
}
PyObject* cancel_timer(PyObject* self, PyObject*) {
  cancel_handle(timed(self));
  Py_RETURN_NONE;
}
PyObject* is_cancelled(PyObject* self, PyObject*) {
  return PyBool_FromLong(plain(self).cancelled ? 1 : 0);
}
PyObject* is_timer_cancelled(PyObject* self, PyObject*) {
  return PyBool_FromLong(timed(self).cancelled ? 1 : 0);
}
PyObject* when(PyObject* self, PyObject*) { return PyFloat_FromDouble(timed(self).when); }
PyObject* handle_get_context(PyObject* self, PyObject*) { return or_none(plain(self).context); }
PyObject* timer_get_context(PyObject* self, PyObject*) { return or_none(timed(self).context); }

PyObject* run_now(PyObject* self, PyObject*) {
  Handle& handle = plain(self);
  if (handle.loop->run_handle(handle) < 0) return nullptr;
  Py_RETURN_NONE;
}
PyObject* run_timer_now(PyObject* self, PyObject*) {
  Handle& handle = timed(self);
  if (handle.loop->run_handle(handle) < 0) return nullptr;
  Py_RETURN_NONE;
}

// asyncio.Handle's own text, which reads the attributes above.
PyObject* repr_info(PyObject* self, PyObject*) {
  return PyObject_CallMethod(state_of_type(Py_TYPE(self))->handle_class, "_repr_info", "O", self);
}
PyObject* repr(PyObject* self) {
  return PyObject_CallMethod(state_of_type(Py_TYPE(self))->handle_class, "__repr__", "O", self);
}

void* const kPlain = nullptr;
int g_timer_mark = 0;
void* const kTimer = &g_timer_mark;

PyGetSetDef g_plain_attributes[] = {
    {"_callback", get_callback, nullptr, nullptr, kPlain},
    {"_args", get_arguments, nullptr, nullptr, kPlain},
    {"_cancelled", get_cancelled, nullptr, nullptr, kPlain},
    {"_context", get_context, nullptr, nullptr, kPlain},
    {"_loop", get_loop, nullptr, nullptr, kPlain},
    {"_source_traceback", get_source_traceback, set_source_traceback, nullptr, kPlain},
    {"_repr", get_repr, nullptr, nullptr, kPlain},
    {}};

PyGetSetDef g_timer_attributes[] = {
    {"_callback", get_callback, nullptr, nullptr, kTimer},
    {"_args", get_arguments, nullptr, nullptr, kTimer},
    {"_cancelled", get_cancelled, nullptr, nullptr, kTimer},
    {"_context", get_context, nullptr, nullptr, kTimer},
    {"_loop", get_loop, nullptr, nullptr, kTimer},
    {"_source_traceback", get_source_traceback, set_source_traceback, nullptr, kTimer},
    {"_repr", get_repr, nullptr, nullptr, kTimer},
    {"_when", get_when, nullptr, nullptr, kTimer},
    {"_scheduled", get_scheduled, nullptr, nullptr, kTimer},
    {}};

PyMethodDef g_plain_methods[] = {
    {"cancel", cancel, METH_NOARGS, "cancel(): the callback will not run."},
    {"cancelled", is_cancelled, METH_NOARGS, "cancelled(): whether it was cancelled."},
    {"get_context", handle_get_context, METH_NOARGS, "get_context(): the context it runs in."},
    {"_run", run_now, METH_NOARGS, nullptr},
    {"_repr_info", repr_info, METH_NOARGS, nullptr},
    {}};

PyMethodDef g_timer_methods[] = {
    {"cancel", cancel_timer, METH_NOARGS, "cancel(): the callback will not run."},
    {"cancelled", is_timer_cancelled, METH_NOARGS, "cancelled(): whether it was cancelled."},
    {"get_context", timer_get_context, METH_NOARGS, "get_context(): the context it runs in."},
    {"when", when, METH_NOARGS, "when(): the time it runs, in seconds of the loop's clock."},
    {"_run", run_timer_now, METH_NOARGS, nullptr},
    {}};

PyMemberDef g_plain_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(HandleObject, weakrefs), READONLY, nullptr}, {}};

PyType_Slot g_plain_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(plain_dealloc)},
                               {Py_tp_traverse, reinterpret_cast<void*>(plain_traverse)},
                               {Py_tp_clear, reinterpret_cast<void*>(plain_clear)},
                               {Py_tp_repr, reinterpret_cast<void*>(repr)},
                               {Py_tp_methods, g_plain_methods},
                               {Py_tp_getset, g_plain_attributes},
                               {Py_tp_members, g_plain_members},
                               {0, nullptr}};

PyType_Spec g_plain_spec{
    "erlang_loop.Handle", sizeof(HandleObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, g_plain_slots};

PyType_Slot g_timer_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(timed_dealloc)},
                               {Py_tp_traverse, reinterpret_cast<void*>(timed_traverse)},
                               {Py_tp_clear, reinterpret_cast<void*>(timed_clear)},
                               {Py_tp_methods, g_timer_methods},
                               {Py_tp_getset, g_timer_attributes},
                               {0, nullptr}};

void free_list(FreeList*& list) {
  if (list == nullptr) return;
  while (list->size > 0) PyObject_GC_Del(list->objects[--list->size]);
  delete std::exchange(list, nullptr);
}

}  // namespace

Handle* new_handle(Loop& loop, PyObject* callback, PyObject* const* arguments, std::size_t count,
                   PyObject* context, bool tracked) {
  State& state = loop.state();
  PyObject* object = allocate(*state.shared->free_handles, state.handle_type);
  if (object == nullptr) return nullptr;
  ++state.shared->handles;
  reinterpret_cast<HandleObject*>(object)->weakrefs = nullptr;
  Handle& handle = plain(object);
  handle.timer = false;
  const bool filled = fill(handle, object, loop, callback, arguments, count, context);
  if (tracked) PyObject_GC_Track(object);
  if (filled) return &handle;
  Py_DECREF(object);
  return nullptr;
}

Timer* new_timer(Loop& loop, double when, PyObject* callback, PyObject* const* arguments,
                 std::size_t count, PyObject* context, bool tracked) {
  State& state = loop.state();
  const bool recycled = state.shared->free_timers->size > 0;
  PyObject* object = allocate(*state.shared->free_timers, state.timer_type);
  if (object == nullptr) return nullptr;
  ++state.shared->timers;
  if (!recycled) {
    // The base's slots stay empty for good, its list of weak references as long as there are none.
    std::memset(reinterpret_cast<char*>(object) + sizeof(PyObject), 0,
                Timer::kOffset - sizeof(PyObject));
  }
  auto& timer = *reinterpret_cast<Timer*>(reinterpret_cast<char*>(object) + Timer::kOffset);
  timer.timer = true;
  timer.when = when;
  timer.index = Timer::kNowhere;
  const bool filled = fill(timer, object, loop, callback, arguments, count, context);
  if (tracked) PyObject_GC_Track(object);
  if (filled) return &timer;
  Py_DECREF(object);
  return nullptr;
}

void give_back(Handle& handle) {
  if (Py_REFCNT(handle.self) > 1 && PyObject_GC_IsTracked(handle.self) == 0)
    PyObject_GC_Track(handle.self);
  Py_DECREF(handle.self);
}

int visit_pending(Handle& handle, visitproc visit, void* arg) {
  if (PyObject_GC_IsTracked(handle.self) != 0) {
    Py_VISIT(handle.self);
    return 0;
  }
  return Py_REFCNT(handle.self) == 1 ? traverse(handle, visit, arg) : 0;
}

void cancel_handle(Handle& handle) {
  if (handle.cancelled) return;
  handle.cancelled = true;
  if (handle.loop_object != nullptr && handle.loop->debug()) {
    handle.telling = true;  // what it would have called, before that is forgotten
    PyObject* text = PyObject_Repr(handle.self);
    handle.telling = false;
    if (text == nullptr) PyErr_Clear();
    Py_XSETREF(handle.repr, text);
  }
  Py_INCREF(handle.self);
  // A callback that cancels its own handle still runs on what the handle holds.
  if (!handle.running) {
    Py_CLEAR(handle.callback);
    drop_arguments(handle);
  }
  if (handle.timer && handle.loop_object != nullptr)
    handle.loop->timer_cancelled(static_cast<Timer&>(handle));
  Py_DECREF(handle.self);
}

int handle_exec(PyObject* module, State& state) {
  state.shared->free_handles = new FreeList;
  state.shared->free_timers = new FreeList;
  state.handle_type =
      reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &g_plain_spec, nullptr));
  if (state.handle_type == nullptr) return -1;
  auto* base = reinterpret_cast<PyTypeObject*>(state.timer_class);
  if (static_cast<std::size_t>(base->tp_basicsize) > Timer::kOffset) {
    PyErr_SetString(PyExc_SystemError, "asyncio's TimerHandle has outgrown ours");
    return -1;
  }
  PyType_Spec spec{"erlang_loop.TimerHandle", static_cast<int>(Timer::kOffset + sizeof(Timer)), 0,
                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                   g_timer_slots};
  state.timer_type =
      reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &spec, state.timer_class));
  if (state.timer_type == nullptr) return -1;
  if (PyModule_AddType(module, state.handle_type) < 0) return -1;
  return PyModule_AddType(module, state.timer_type);
}

void free_handles(Shared& shared) {
  free_list(shared.free_handles);
  free_list(shared.free_timers);
}

}  // namespace loop
