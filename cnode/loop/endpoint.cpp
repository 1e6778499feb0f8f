#include "cnode/loop/endpoint.hpp"

#include <cerrno>
#include <cstddef>
#include <utility>
#include <vector>

#include "cnode/py/error.hpp"

namespace loop {
namespace {

#if PY_VERSION_HEX >= 0x030C0000
constexpr int kOffsetMember = Py_T_PYSSIZET;
constexpr int kReadOnly = Py_READONLY;
#else
constexpr int kOffsetMember = T_PYSSIZET;
constexpr int kReadOnly = READONLY;
#endif

}  // namespace

Entered::Entered(PyObject* context) : context_(Py_NewRef(context)) {
  entered_ = PyContext_Enter(context) == 0;
  if (!entered_) PyErr_Clear();  // already: the callback is called from one of its own
}

Entered::~Entered() {
  if (entered_ && PyErr_Occurred() == nullptr) {
    if (PyContext_Exit(context_) < 0) PyErr_Clear();
  } else if (entered_) {
    py::Error error = py::Error::fetch();
    if (PyContext_Exit(context_) < 0) PyErr_Clear();
    std::move(error).restore();
  }
  Py_DECREF(context_);
}

int open_endpoint(Endpoint& endpoint, PyObject* self, Loop& loop, PyObject* file,
                  PyObject* protocol, PyObject* extra) {
  endpoint.self = self;
  endpoint.loop = &loop;
  endpoint.loop_object = Py_NewRef(loop.object());
  endpoint.protocol = Py_NewRef(protocol);
  endpoint.context = PyContext_CopyCurrent();
  if (endpoint.context == nullptr) return -1;
  PyObject* number = PyObject_CallMethodNoArgs(file, loop.state().names.fileno);
  if (number == nullptr) return -1;
  endpoint.fd = static_cast<int>(PyLong_AsLong(number));
  Py_DECREF(number);
  if (endpoint.fd < 0) {
    errno = EBADF;
    if (PyErr_Occurred() == nullptr) PyErr_SetFromErrno(PyExc_OSError);
    return -1;
  }
  const bool given = extra != nullptr && extra != Py_None;
  endpoint.extra = given ? PyDict_Copy(extra) : PyDict_New();
  if (endpoint.extra == nullptr) return -1;
  endpoint.file = Py_NewRef(file);
  return 0;
}

int start_endpoint(Endpoint& endpoint, PyObject* waiter, Job started) {
  PyObject* made = PyObject_GetAttr(endpoint.protocol, endpoint.state().names.connection_made);
  if (made == nullptr) return -1;
  PyObject* handle = nullptr;
  const int status = endpoint.loop->call_soon(made, &endpoint.self, 1, nullptr, handle);
  Py_DECREF(made);
  Py_XDECREF(handle);
  if (status < 0) return -1;
  if (waiter != nullptr && waiter != Py_None) endpoint.waiter = Py_NewRef(waiter);
  endpoint.loop->push(started, Py_NewRef(endpoint.self));
  return 0;
}

int waiter_done(Endpoint& endpoint) {
  PyObject* waiter = std::exchange(endpoint.waiter, nullptr);
  if (waiter == nullptr) return 0;
  State::Names& names = endpoint.state().names;
  PyObject* done = PyObject_CallMethodNoArgs(waiter, names.cancelled);
  if (done == Py_False) {
    Py_DECREF(done);
    done = PyObject_CallMethodOneArg(waiter, names.set_result, Py_None);
  }
  Py_DECREF(waiter);
  Py_XDECREF(done);
  if (done != nullptr) return 0;
  return tell_exception(*endpoint.loop, "Exception in callback of a transport", endpoint.self,
                        endpoint.protocol);
}

int watch_side(Endpoint& endpoint, Side side, Job job) {
  Ready before;
  if (endpoint.loop->watch(endpoint.fd, side, {Py_NewRef(endpoint.self), job}, before) < 0)
    return -1;
  if (!before) return 0;
  if (Handle* handle = before.handle()) cancel_handle(*handle);
  Py_DECREF(before.object());
  return 0;
}

bool watches_side(const Endpoint& endpoint, Side side) {
  if (endpoint.loop == nullptr) return false;
  const Ready watcher = endpoint.loop->watcher(endpoint.fd, side);
  return watcher && watcher.object() == endpoint.self;
}

void stop_side(Endpoint& endpoint, Side side) {
  if (!watches_side(endpoint, side)) return;
  Ready before;
  if (endpoint.loop->unwatch(endpoint.fd, side, before)) Py_DECREF(before.object());
}

int tell_protocol(Endpoint& endpoint, PyObject* name, PyObject* const* arguments,
                  std::size_t count) {
  // Kept: the callback may close the transport and set another protocol.
  PyObject* call[] = {nullptr, endpoint.protocol, count > 0 ? arguments[0] : nullptr,
                      count > 1 ? arguments[1] : nullptr};
  const py::Ref protocol = py::Ref::borrow(endpoint.protocol);
  PyObject* done = nullptr;
  {
    const Entered entered(endpoint.context);
    done = PyObject_VectorcallMethod(name, call + 1, (count + 1) | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                     nullptr);
  }
  Py_XDECREF(done);
  if (done != nullptr) return 0;
  if (must_leave() || endpoint.loop == nullptr) return -1;
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  PyObject* text = PyUnicode_FromFormat("Exception in callback %U() of a transport", name);
  if (text == nullptr) PyErr_Clear();
  PyErr_Restore(type, value, trace);
  const char* message = text == nullptr ? nullptr : PyUnicode_AsUTF8(text);
  const int status =
      tell_exception(*endpoint.loop, message == nullptr ? "Exception in callback" : message,
                     endpoint.self, protocol.get());
  Py_XDECREF(text);
  return status;
}

int lose_now(Endpoint& endpoint, PyObject* reason) {
  const py::Ref loop_kept = py::Ref::borrow(endpoint.loop_object);
  const py::Ref self_kept = py::Ref::borrow(endpoint.self);
  Loop& loop = *endpoint.loop;
  stop_side(endpoint, Side::kRead);
  stop_side(endpoint, Side::kWrite);
  int status = tell_protocol(endpoint, loop.state().names.connection_lost, &reason, 1);
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  loop.disown(endpoint.fd, endpoint.self);
  if (PyObject* file = std::exchange(endpoint.file, nullptr)) {
    PyObject* closed = PyObject_CallMethodNoArgs(file, loop.state().names.close);
    Py_XDECREF(closed);
    Py_DECREF(file);
    if (closed == nullptr && tell_exception(loop, "Exception in callback close() of a transport",
                                            endpoint.self, endpoint.protocol) < 0) {
      if (status == 0)
        status = -1;
      else
        PyErr_Clear();
    }
  }
  if (type != nullptr) PyErr_Restore(type, value, trace);
  Py_CLEAR(endpoint.protocol);
  Py_CLEAR(endpoint.lost_reason);
  endpoint.loop = nullptr;
  Py_CLEAR(endpoint.loop_object);
  return status;
}

namespace {

int lost_job(Loop&, PyObject* self) {
  auto& endpoint = fields_of<Endpoint>(self);
  if (endpoint.loop == nullptr) return 0;
  const py::Ref reason =
      py::Ref::borrow(endpoint.lost_reason == nullptr ? Py_None : endpoint.lost_reason);
  return lose_now(endpoint, reason.get());
}

PyObject* or_none(PyObject* object) { return Py_NewRef(object == nullptr ? Py_None : object); }

}  // namespace

void lose_soon(Endpoint& endpoint, PyObject* reason) {
  Py_XSETREF(endpoint.lost_reason, Py_XNewRef(reason));
  endpoint.loop->push(lost_job, Py_NewRef(endpoint.self));
}

// --- the slots

int traverse_endpoint(Endpoint& endpoint, visitproc visit, void* arg) {
  for (PyObject* each : {endpoint.dict, endpoint.loop_object, endpoint.file, endpoint.protocol,
                         endpoint.extra, endpoint.context, endpoint.waiter, endpoint.lost_reason})
    Py_VISIT(each);
  return 0;
}

void clear_endpoint(Endpoint& endpoint) {
  endpoint.closing = true;
  if (endpoint.lost == 0) endpoint.lost = 1;
  if (endpoint.loop != nullptr && endpoint.fd >= 0)
    endpoint.loop->disown(endpoint.fd, endpoint.self);
  endpoint.loop = nullptr;
  Py_CLEAR(endpoint.dict);
  Py_CLEAR(endpoint.protocol);
  Py_CLEAR(endpoint.extra);
  Py_CLEAR(endpoint.context);
  Py_CLEAR(endpoint.waiter);
  Py_CLEAR(endpoint.lost_reason);
  Py_CLEAR(endpoint.file);
  Py_CLEAR(endpoint.loop_object);
}

// As asyncio's __del__: a transport that nobody closed.
void finalize_endpoint(PyObject* self) {
  auto& endpoint = fields_of<Endpoint>(self);
  if (endpoint.file == nullptr || endpoint.loop == nullptr) return;
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  State& state = endpoint.loop->state();
  PyObject* warned = PyObject_CallOneArg(state.unclosed, self);
  Py_XDECREF(warned);
  if (warned == nullptr) PyErr_WriteUnraisable(self);
  if (endpoint.loop != nullptr) endpoint.loop->disown(endpoint.fd, self);
  if (PyObject* file = std::exchange(endpoint.file, nullptr)) {
    PyObject* closed = PyObject_CallMethodNoArgs(file, state.names.close);
    Py_XDECREF(closed);
    Py_DECREF(file);
    if (closed == nullptr) PyErr_WriteUnraisable(self);
  }
  PyErr_Restore(type, value, trace);
}

PyTypeObject* endpoint_type(PyObject* module, const char* name, std::size_t size, PyObject* base,
                            PyType_Slot* slots) {
  if (reinterpret_cast<PyTypeObject*>(base)->tp_basicsize >
      static_cast<Py_ssize_t>(Endpoint::kOffset)) {
    PyErr_SetString(PyExc_SystemError, "asyncio's transports have outgrown ours");
    return nullptr;
  }
  PyMemberDef places[] = {{"__dictoffset__", kOffsetMember,
                           Endpoint::kOffset + offsetof(Endpoint, dict), kReadOnly, nullptr},
                          {"__weaklistoffset__", kOffsetMember,
                           Endpoint::kOffset + offsetof(Endpoint, weakrefs), kReadOnly, nullptr},
                          {}};
  std::vector<PyType_Slot> all;
  for (; slots->slot != 0; ++slots) all.push_back(*slots);
  all.push_back({Py_tp_members, places});
  all.push_back({0, nullptr});
  PyType_Spec spec{name, static_cast<int>(Endpoint::kOffset + size), 0,
                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                   all.data()};
  auto* type = reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &spec, base));
  if (type != nullptr && PyModule_AddType(module, type) < 0) Py_CLEAR(type);
  return type;
}

// --- what all of them have

PyObject* endpoint_is_closing(PyObject* self, PyObject*) {
  return PyBool_FromLong(fields_of<Endpoint>(self).closing ? 1 : 0);
}

PyObject* endpoint_get_protocol(PyObject* self, PyObject*) {
  return or_none(fields_of<Endpoint>(self).protocol);
}

PyObject* endpoint_set_protocol(PyObject* self, PyObject* protocol) {
  Py_XSETREF(fields_of<Endpoint>(self).protocol, Py_NewRef(protocol));
  Py_RETURN_NONE;
}

PyObject* endpoint_get_extra_info(PyObject* self, PyObject* arguments, PyObject* options) {
  PyObject* name = nullptr;
  PyObject* fallback = Py_None;
  static const char* names[] = {"name", "default", nullptr};
  if (PyArg_ParseTupleAndKeywords(arguments, options, "O|O", const_cast<char**>(names), &name,
                                  &fallback) == 0)
    return nullptr;
  PyObject* extra = fields_of<Endpoint>(self).extra;
  PyObject* found = extra == nullptr ? nullptr : PyDict_GetItemWithError(extra, name);
  if (found == nullptr && PyErr_Occurred() != nullptr) return nullptr;
  return Py_NewRef(found == nullptr ? fallback : found);
}

PyObject* endpoint_limits(PyObject* self, PyObject*) {
  return fields_of<Endpoint>(self).flow.limits();
}

PyObject* endpoint_loop(PyObject* self, void*) {
  return or_none(fields_of<Endpoint>(self).loop_object);
}
PyObject* endpoint_protocol(PyObject* self, void*) { return endpoint_get_protocol(self, nullptr); }
PyObject* endpoint_extra(PyObject* self, void*) { return or_none(fields_of<Endpoint>(self).extra); }
PyObject* endpoint_file(PyObject* self, void*) { return or_none(fields_of<Endpoint>(self).file); }
PyObject* endpoint_fd(PyObject* self, void*) {
  return PyLong_FromLong(fields_of<Endpoint>(self).fd);
}
PyObject* endpoint_lost(PyObject* self, void*) {
  return PyLong_FromLong(fields_of<Endpoint>(self).lost);
}
PyObject* endpoint_closing(PyObject* self, void*) { return endpoint_is_closing(self, nullptr); }

}  // namespace loop
