// The transport of an application that speaks TLS: a real asyncio.Transport, whose verbs are those
// of the TlsProtocol it belongs to.
#include <cstddef>
#include <type_traits>

#include "cnode/loop/tls_protocol.hpp"

namespace loop {
namespace {

// Native fields begin here, behind the slots of asyncio's classes, which take less.
constexpr std::size_t kFields = 128;

struct Fields {
  TlsState* state;
  PyObject* protocol;  // an SSLProtocol
  PyObject* dictionary;
  PyObject* weak_references;
  bool closed;
};

Fields& fields_of(PyObject* self) {
  return *reinterpret_cast<Fields*>(reinterpret_cast<char*>(self) + kFields);
}

// The slots that the Python classes below ours have in the object, which nobody else visits or
// clears.
template <typename Visit>
int each_slot(PyObject* self, Visit visit) {
  PyTypeObject* base = Py_TYPE(self)->tp_base;  // ours cannot be inherited from
  for (; base != nullptr && (base->tp_flags & Py_TPFLAGS_HEAPTYPE) != 0; base = base->tp_base) {
    for (PyMemberDef* member = base->tp_members; member != nullptr && member->name != nullptr;
         ++member) {
      if (member->type != T_OBJECT_EX || (member->flags & READONLY) != 0) continue;
      auto* place = reinterpret_cast<PyObject**>(reinterpret_cast<char*>(self) + member->offset);
      if (const int status = visit(*place)) return status;
    }
  }
  return 0;
}

int transport_traverse(PyObject* self, visitproc visit, void* arg) {
  Fields& fields = fields_of(self);
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(fields.protocol);
  Py_VISIT(fields.dictionary);
  return each_slot(self, [&](PyObject*& object) {
    Py_VISIT(object);
    return 0;
  });
}

int transport_clear(PyObject* self) {
  Fields& fields = fields_of(self);
  Py_CLEAR(fields.protocol);
  Py_CLEAR(fields.dictionary);
  return each_slot(self, [](PyObject*& object) {
    Py_CLEAR(object);
    return 0;
  });
}

void transport_finalize(PyObject* self) {
  Fields& fields = fields_of(self);
  if (fields.closed) return;
  fields.closed = true;
  std::optional<py::Error> raised;  // by whoever let go of us
  if (PyErr_Occurred() != nullptr) raised.emplace(py::Error::fetch());
  if (PyErr_ResourceWarning(self, 1, "unclosed transport <asyncio._SSLProtocolTransport object>") <
      0)
    PyErr_WriteUnraisable(self);
  if (raised) std::move(*raised).restore();
}

void transport_dealloc(PyObject* self) {
  if (PyObject_CallFinalizerFromDealloc(self) < 0) return;
  PyObject_GC_UnTrack(self);
  if (fields_of(self).weak_references != nullptr) PyObject_ClearWeakRefs(self);
  PyTypeObject* type = Py_TYPE(self);
  transport_clear(self);
  type->tp_free(self);
  Py_DECREF(type);
}

// Calls `action` with the protocol, and returns what it does or, for void, None. A transport that
// was closed twice has let go of its protocol: it answers `otherwise`, a new reference.
template <typename Action>
PyObject* with_protocol(PyObject* self, PyObject* otherwise, Action action) {
  PyObject* protocol = fields_of(self).protocol;
  if (protocol == nullptr || !tls_of(protocol).is_open()) return otherwise;
  Py_XDECREF(otherwise);
  const py::Ref alive = py::Ref::borrow(protocol);
  return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
    if constexpr (std::is_void_v<decltype(action(tls_of(protocol)))>) {
      action(tls_of(protocol));
      return Py_NewRef(Py_None);
    } else {
      return action(tls_of(protocol));
    }
  });
}

template <typename Action>
PyObject* with_protocol(PyObject* self, Action action) {
  return with_protocol(self, Py_NewRef(Py_None), action);
}

PyObject* write(PyObject* self, PyObject* data) {
  return with_protocol(self, [&](TlsProtocol& tls) { tls.write(data); });
}

PyObject* write_lines(PyObject* self, PyObject* list) {
  return with_protocol(self, [&](TlsProtocol& tls) { tls.write_lines(list); });
}

PyObject* write_eof(PyObject*, PyObject*) {
  PyErr_SetNone(PyExc_NotImplementedError);
  return nullptr;
}

PyObject* can_write_eof(PyObject*, PyObject*) { Py_RETURN_FALSE; }

PyObject* close(PyObject* self, PyObject*) {
  Fields& fields = fields_of(self);
  if (fields.closed) {
    // As asyncio: breaks the cycle of an application that keeps its transport, for programs that
    // end without waiting for connection_lost(). Until the farewells are said abort() is to work.
    if (fields.protocol != nullptr && tls_of(fields.protocol).is_over()) Py_CLEAR(fields.protocol);
    Py_RETURN_NONE;
  }
  fields.closed = true;
  return with_protocol(self, [](TlsProtocol& tls) { tls.close(); });
}

PyObject* abort(PyObject* self, PyObject*) {
  fields_of(self).closed = true;
  return with_protocol(self, [](TlsProtocol& tls) { tls.abort(nullptr); });
}

PyObject* force_close(PyObject* self, PyObject* error) {
  fields_of(self).closed = true;
  return with_protocol(self,
                       [&](TlsProtocol& tls) { tls.abort(error == Py_None ? nullptr : error); });
}

PyObject* is_closing(PyObject* self, PyObject*) {
  if (fields_of(self).closed) Py_RETURN_TRUE;
  return with_protocol(
      self, [](TlsProtocol& tls) { return PyBool_FromLong(tls.transport_is_closing() ? 1 : 0); });
}

PyObject* is_reading(PyObject* self, PyObject*) {
  return with_protocol(self, Py_NewRef(Py_False), [](TlsProtocol& tls) {
    return PyBool_FromLong(tls.reading_paused() ? 0 : 1);
  });
}

PyObject* pause_reading(PyObject* self, PyObject*) {
  return with_protocol(self, [](TlsProtocol& tls) { tls.pause_reading(); });
}

PyObject* resume_reading(PyObject* self, PyObject*) {
  return with_protocol(self, [](TlsProtocol& tls) { tls.resume_reading(); });
}

PyObject* get_extra_info(PyObject* self, PyObject* args, PyObject* keywords) {
  static const char* names[] = {"name", "default", nullptr};
  PyObject* name = nullptr;
  PyObject* otherwise = Py_None;
  if (PyArg_ParseTupleAndKeywords(args, keywords, "O|O:get_extra_info", const_cast<char**>(names),
                                  &name, &otherwise) == 0)
    return nullptr;
  return with_protocol(self, Py_NewRef(otherwise),
                       [&](TlsProtocol& tls) { return tls.extra_info(name, otherwise).release(); });
}

PyObject* set_protocol(PyObject* self, PyObject* protocol) {
  return with_protocol(self, [&](TlsProtocol& tls) { tls.set_application(protocol); });
}

PyObject* get_protocol(PyObject* self, PyObject*) {
  return with_protocol(self, [](TlsProtocol& tls) {
    PyObject* protocol = tls.application();
    return Py_NewRef(protocol == nullptr ? Py_None : protocol);
  });
}

bool parse_limits(PyObject* args, PyObject* keywords, PyObject*& high, PyObject*& low) {
  static const char* names[] = {"high", "low", nullptr};
  if (PyArg_ParseTupleAndKeywords(args, keywords, "|OO", const_cast<char**>(names), &high, &low) ==
      0)
    return false;
  if (high == Py_None) high = nullptr;
  if (low == Py_None) low = nullptr;
  return true;
}

PyObject* set_write_buffer_limits(PyObject* self, PyObject* args, PyObject* keywords) {
  PyObject *high = nullptr, *low = nullptr;
  if (!parse_limits(args, keywords, high, low)) return nullptr;
  return with_protocol(self, [&](TlsProtocol& tls) { tls.set_write_limits(high, low); });
}

PyObject* set_read_buffer_limits(PyObject* self, PyObject* args, PyObject* keywords) {
  PyObject *high = nullptr, *low = nullptr;
  if (!parse_limits(args, keywords, high, low)) return nullptr;
  return with_protocol(self, [&](TlsProtocol& tls) { tls.set_read_limits(high, low); });
}

PyObject* pair(const TlsProtocol::Limits& limits) {
  return Py_BuildValue("(nn)", static_cast<Py_ssize_t>(limits.low),
                       static_cast<Py_ssize_t>(limits.high));
}

PyObject* get_write_buffer_limits(PyObject* self, PyObject*) {
  return with_protocol(self, pair({}), [](TlsProtocol& tls) { return pair(tls.write_limits()); });
}
PyObject* get_read_buffer_limits(PyObject* self, PyObject*) {
  return with_protocol(self, pair({}), [](TlsProtocol& tls) { return pair(tls.read_limits()); });
}
PyObject* get_write_buffer_size(PyObject* self, PyObject*) {
  return with_protocol(self, PyLong_FromLong(0),
                       [](TlsProtocol& tls) { return PyLong_FromSize_t(tls.write_buffer_size()); });
}
PyObject* get_read_buffer_size(PyObject* self, PyObject*) {
  return with_protocol(self, PyLong_FromLong(0),
                       [](TlsProtocol& tls) { return PyLong_FromSize_t(tls.read_buffer_size()); });
}

PyObject* append_write_backlog(PyObject* self, PyObject* data) {
  return with_protocol(self, [&](TlsProtocol& tls) { tls.queue_unsent(data); });
}

PyObject* get_ssl_protocol(PyObject* self, void*) {
  PyObject* protocol = fields_of(self).protocol;
  return Py_NewRef(protocol == nullptr ? Py_None : protocol);
}

// sendfile()'s fallback looks at it.
PyObject* get_protocol_paused(PyObject* self, void*) {
  return with_protocol(self, Py_NewRef(Py_False), [](TlsProtocol& tls) {
    return PyBool_FromLong(tls.writing_paused() ? 1 : 0);
  });
}

PyObject* get_closed(PyObject* self, void*) {
  return PyBool_FromLong(fields_of(self).closed ? 1 : 0);
}

template <typename Function>
PyCFunction as_method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef g_methods[] = {
    {"write", write, METH_O, "write(data): encrypt and send."},
    {"writelines", write_lines, METH_O, "writelines(list): encrypt and send all of them."},
    {"write_eof", write_eof, METH_NOARGS, "write_eof(): not possible in TLS."},
    {"can_write_eof", can_write_eof, METH_NOARGS, "can_write_eof(): False."},
    {"close", close, METH_NOARGS, "close(): send what is there, say farewell and close."},
    {"abort", abort, METH_NOARGS, "abort(): close at once."},
    {"_force_close", force_close, METH_O, nullptr},
    {"is_closing", is_closing, METH_NOARGS, "is_closing(): whether it is closed or about to be."},
    {"is_reading", is_reading, METH_NOARGS, "is_reading(): whether data is being delivered."},
    {"pause_reading", pause_reading, METH_NOARGS, "pause_reading(): deliver no more data."},
    {"resume_reading", resume_reading, METH_NOARGS, "resume_reading(): deliver data again."},
    {"get_extra_info", as_method(get_extra_info), METH_VARARGS | METH_KEYWORDS,
     "get_extra_info(name, default=None): what is known of the connection."},
    {"set_protocol", set_protocol, METH_O, "set_protocol(protocol): who gets the data."},
    {"get_protocol", get_protocol, METH_NOARGS, "get_protocol(): who gets the data."},
    {"set_write_buffer_limits", as_method(set_write_buffer_limits), METH_VARARGS | METH_KEYWORDS,
     "set_write_buffer_limits(high=None, low=None): when to pause and resume the writer."},
    {"get_write_buffer_limits", get_write_buffer_limits, METH_NOARGS,
     "get_write_buffer_limits(): (low, high)."},
    {"get_write_buffer_size", get_write_buffer_size, METH_NOARGS,
     "get_write_buffer_size(): bytes that have not left."},
    {"set_read_buffer_limits", as_method(set_read_buffer_limits), METH_VARARGS | METH_KEYWORDS,
     "set_read_buffer_limits(high=None, low=None): when to pause and resume the transport below."},
    {"get_read_buffer_limits", get_read_buffer_limits, METH_NOARGS,
     "get_read_buffer_limits(): (low, high)."},
    {"get_read_buffer_size", get_read_buffer_size, METH_NOARGS,
     "get_read_buffer_size(): bytes received and not decrypted."},
    {"_test__append_write_backlog", append_write_backlog, METH_O, nullptr},
    {}};

PyGetSetDef g_attributes[] = {{"_ssl_protocol", get_ssl_protocol, nullptr, nullptr, nullptr},
                              {"_protocol_paused", get_protocol_paused, nullptr, nullptr, nullptr},
                              {"_closed", get_closed, nullptr, nullptr, nullptr},
                              {}};

PyMemberDef g_members[] = {
    {"__dictoffset__", T_PYSSIZET, kFields + offsetof(Fields, dictionary), READONLY, nullptr},
    {"__weaklistoffset__", T_PYSSIZET, kFields + offsetof(Fields, weak_references), READONLY,
     nullptr},
    {}};

PyType_Slot g_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(transport_dealloc)},
                         {Py_tp_traverse, reinterpret_cast<void*>(transport_traverse)},
                         {Py_tp_clear, reinterpret_cast<void*>(transport_clear)},
                         {Py_tp_finalize, reinterpret_cast<void*>(transport_finalize)},
                         {Py_tp_methods, g_methods},
                         {Py_tp_getset, g_attributes},
                         {Py_tp_members, g_members},
                         {0, nullptr}};

PyType_Spec g_spec{"erlang_loop._SSLProtocolTransport", static_cast<int>(kFields + sizeof(Fields)),
                   0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                   g_slots};

}  // namespace

py::Ref new_tls_transport(TlsState& state, PyObject* loop, PyObject* protocol) {
  py::Ref transport = py::check(state.transport_type->tp_alloc(state.transport_type, 0));
  Fields& fields = fields_of(transport.get());
  fields.state = &state;
  fields.protocol = Py_NewRef(protocol);
  py::check_status(PyObject_SetAttr(transport.get(), state.names._loop, loop));
  return transport;
}

void mark_closed(PyObject* transport) { fields_of(transport).closed = true; }

int tls_transport_exec(PyObject* module, TlsState& state) {
  return guarded(-1, [&] {
    const py::Ref transports = py::import("asyncio.transports");
    const py::Ref constants = py::import("asyncio.constants");
    const py::Ref base = py::attribute(transports.get(), "_FlowControlMixin");
    const Py_ssize_t size = reinterpret_cast<PyTypeObject*>(base.get())->tp_basicsize;
    if (size > static_cast<Py_ssize_t>(kFields))
      py::raise(PyExc_ImportError, "asyncio's transports have more slots than expected");
    py::Ref type = py::check(PyType_FromModuleAndSpec(module, &g_spec, base.get()));
    const py::Ref modes = py::attribute(constants.get(), "_SendfileMode");
    const py::Ref fallback = py::attribute(modes.get(), "FALLBACK");
    py::check_status(PyObject_SetAttrString(type.get(), "_sendfile_compatible", fallback.get()));
    py::check_status(PyObject_SetAttrString(type.get(), "_start_tls_compatible", Py_True));
    state.transport_type = reinterpret_cast<PyTypeObject*>(type.release());
    return PyModule_AddType(module, state.transport_type);
  });
}

}  // namespace loop
