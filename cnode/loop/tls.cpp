// SSLProtocol as Python sees it, and the start of TLS in an interpreter. What it does is in
// tls_protocol.cpp.
#include "cnode/loop/tls.hpp"

#include <cstddef>
#include <new>
#include <utility>

#include "cnode/loop/tls_protocol.hpp"

namespace loop {
namespace {

struct ProtocolObject {
  PyObject_HEAD PyObject* dictionary;
  PyObject* weak_references;
  TlsProtocol* tls;
};

ProtocolObject& object_of(PyObject* self) { return *reinterpret_cast<ProtocolObject*>(self); }

// Calls `action`, under which the protocol stays alive whatever the application lets go of.
template <typename Action>
PyObject* on(PyObject* self, Action action) {
  TlsProtocol& tls = tls_of(self);
  if (!tls.is_open()) {
    PyErr_SetString(PyExc_RuntimeError, "the TLS connection is gone");
    return nullptr;
  }
  const py::Ref alive = py::Ref::borrow(self);
  return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
    action(tls);
    return Py_NewRef(Py_None);
  });
}

PyObject* unless_none(PyObject* object) { return object == Py_None ? nullptr : object; }
PyObject* or_none(PyObject* object) { return Py_NewRef(object == nullptr ? Py_None : object); }

// --- life

PyObject* protocol_new(PyTypeObject* type, PyObject* args, PyObject* keywords);

int protocol_traverse(PyObject* self, visitproc visit, void* arg) {
  ProtocolObject& object = object_of(self);
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(object.dictionary);
  return object.tls == nullptr ? 0 : object.tls->traverse(visit, arg);
}

int protocol_clear(PyObject* self) {
  ProtocolObject& object = object_of(self);
  Py_CLEAR(object.dictionary);
  if (object.tls != nullptr) object.tls->clear();
  return 0;
}

void protocol_dealloc(PyObject* self) {
  ProtocolObject& object = object_of(self);
  PyObject_GC_UnTrack(self);
  if (object.weak_references != nullptr) PyObject_ClearWeakRefs(self);
  protocol_clear(self);
  delete object.tls;
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

// --- what asyncio calls

PyObject* connection_made(PyObject* self, PyObject* transport) {
  return on(self, [&](TlsProtocol& tls) { tls.connection_made(transport); });
}
PyObject* connection_lost(PyObject* self, PyObject* error) {
  return on(self, [&](TlsProtocol& tls) { tls.connection_lost(error); });
}
PyObject* get_buffer(PyObject* self, PyObject*) {
  return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
    TlsProtocol& tls = tls_of(self);
    if (!tls.is_open()) py::raise(PyExc_RuntimeError, "the TLS connection is gone");
    return tls.get_buffer().release();
  });
}
PyObject* buffer_updated(PyObject* self, PyObject* number) {
  const Py_ssize_t size = PyNumber_AsSsize_t(number, PyExc_OverflowError);
  if (size == -1 && PyErr_Occurred() != nullptr) return nullptr;
  return on(self, [&](TlsProtocol& tls) { tls.buffer_updated(size); });
}
PyObject* eof_received(PyObject* self, PyObject*) {
  bool keep_open = false;
  PyObject* result = on(self, [&](TlsProtocol& tls) { keep_open = tls.eof_received(); });
  if (result == nullptr || !keep_open) return result;
  Py_DECREF(result);
  Py_RETURN_TRUE;
}
PyObject* pause_writing(PyObject* self, PyObject*) {
  return on(self, [](TlsProtocol& tls) { tls.pause_writing(); });
}
PyObject* resume_writing(PyObject* self, PyObject*) {
  return on(self, [](TlsProtocol& tls) { tls.resume_writing(); });
}

// --- what the loop calls back

PyObject* check_handshake_timeout(PyObject* self, PyObject*) {
  return on(self, [](TlsProtocol& tls) { tls.check_handshake_timeout(); });
}
PyObject* check_shutdown_timeout(PyObject* self, PyObject*) {
  return on(self, [](TlsProtocol& tls) { tls.check_shutdown_timeout(); });
}
PyObject* do_read(PyObject* self, PyObject*) {
  return on(self, [](TlsProtocol& tls) { tls.do_read(); });
}
PyObject* resume(PyObject* self, PyObject*) {
  return on(self, [](TlsProtocol& tls) { tls.resume(); });
}

// --- asyncio's inner names, for those who use them

PyObject* get_application_transport(PyObject* self, PyObject*) {
  return or_none(tls_of(self).application_transport());
}
PyObject* set_application(PyObject* self, PyObject* protocol) {
  return on(self, [&](TlsProtocol& tls) { tls.set_application(protocol); });
}
PyObject* get_extra_info(PyObject* self, PyObject* args) {
  PyObject* name = nullptr;
  PyObject* otherwise = Py_None;
  if (PyArg_ParseTuple(args, "O|O:_get_extra_info", &name, &otherwise) == 0) return nullptr;
  py::Ref info;
  PyObject* done = on(self, [&](TlsProtocol& tls) { info = tls.extra_info(name, otherwise); });
  if (done == nullptr) return nullptr;
  Py_DECREF(done);
  return info.release();
}
PyObject* start_shutdown(PyObject* self, PyObject*) {
  return on(self, [](TlsProtocol& tls) { tls.close(); });
}
PyObject* abort(PyObject* self, PyObject* args) {
  PyObject* error = Py_None;
  if (PyArg_ParseTuple(args, "|O:_abort", &error) == 0) return nullptr;
  return on(self, [&](TlsProtocol& tls) { tls.abort(unless_none(error)); });
}
PyObject* fatal_error(PyObject* self, PyObject* args) {
  PyObject* error = nullptr;
  const char* message = "Fatal error on transport";
  if (PyArg_ParseTuple(args, "O|s:_fatal_error", &error, &message) == 0) return nullptr;
  return on(self, [&](TlsProtocol& tls) { tls.fatal_error(error, message); });
}
PyObject* write_appdata(PyObject* self, PyObject* list) {
  return on(self, [&](TlsProtocol& tls) { tls.write_lines(list); });
}
PyObject* is_transport_closing(PyObject* self, PyObject*) {
  bool closing = false;
  PyObject* done = on(self, [&](TlsProtocol& tls) { closing = tls.transport_is_closing(); });
  if (done == nullptr || !closing) {
    Py_XDECREF(done);
    return done == nullptr ? nullptr : Py_NewRef(Py_False);
  }
  Py_DECREF(done);
  Py_RETURN_TRUE;
}

using Getter = PyObject* (TlsProtocol::*)() const;
template <Getter getter>
PyObject* get(PyObject* self, void*) {
  return or_none((tls_of(self).*getter)());
}
template <PyObject* TlsState::*list, auto stage>
PyObject* get_stage(PyObject* self, void* state) {
  (void)state;
  TlsProtocol& tls = tls_of(self);
  return Py_NewRef(PyTuple_GET_ITEM(tls.state().*list, static_cast<Py_ssize_t>((tls.*stage)())));
}
template <auto getter>
PyObject* get_flag(PyObject* self, void*) {
  return PyBool_FromLong((tls_of(self).*getter)() ? 1 : 0);
}
template <auto getter>
PyObject* get_number(PyObject* self, void*) {
  return PyLong_FromSsize_t(static_cast<Py_ssize_t>((tls_of(self).*getter)()));
}

template <auto setter>
int replace(PyObject* self, PyObject* object, void*) {
  PyObject* done = on(self, [&](TlsProtocol& tls) {
    if (object == nullptr) py::raise(PyExc_AttributeError, "cannot be deleted");
    (tls.*setter)(object);
  });
  Py_XDECREF(done);
  return done == nullptr ? -1 : 0;
}

PyMethodDef g_methods[] = {
    {"connection_made", connection_made, METH_O,
     "connection_made(transport): begin the handshake."},
    {"connection_lost", connection_lost, METH_O, "connection_lost(exc): the transport is gone."},
    {"get_buffer", get_buffer, METH_O, "get_buffer(sizehint): where ciphertext is to be put."},
    {"buffer_updated", buffer_updated, METH_O, "buffer_updated(nbytes): ciphertext was put."},
    {"eof_received", eof_received, METH_NOARGS, "eof_received(): no more ciphertext follows."},
    {"pause_writing", pause_writing, METH_NOARGS, "pause_writing(): the transport is full."},
    {"resume_writing", resume_writing, METH_NOARGS, "resume_writing(): the transport has room."},
    {"_check_handshake_timeout", check_handshake_timeout, METH_NOARGS, nullptr},
    {"_check_shutdown_timeout", check_shutdown_timeout, METH_NOARGS, nullptr},
    {"_do_read", do_read, METH_NOARGS, nullptr},
    {"_resume", resume, METH_NOARGS, nullptr},
    {"_get_app_transport", get_application_transport, METH_NOARGS, nullptr},
    {"_set_app_protocol", set_application, METH_O, nullptr},
    {"_get_extra_info", get_extra_info, METH_VARARGS, nullptr},
    {"_start_shutdown", start_shutdown, METH_NOARGS, nullptr},
    {"_abort", abort, METH_VARARGS, nullptr},
    {"_fatal_error", fatal_error, METH_VARARGS, nullptr},
    {"_write_appdata", write_appdata, METH_O, nullptr},
    {"_is_transport_closing", is_transport_closing, METH_NOARGS, nullptr},
    {}};

PyGetSetDef g_attributes[] = {
    {"_app_transport", get<&TlsProtocol::application_transport>, nullptr, nullptr, nullptr},
    {"_app_protocol", get<&TlsProtocol::application>, nullptr, nullptr, nullptr},
    {"_transport", get<&TlsProtocol::transport>, nullptr, nullptr, nullptr},
    {"_loop", get<&TlsProtocol::loop>, nullptr, nullptr, nullptr},
    {"_waiter", get<&TlsProtocol::waiter>, nullptr, nullptr, nullptr},
    {"_sslcontext", get<&TlsProtocol::context>, nullptr, nullptr, nullptr},
    {"_server_hostname", get<&TlsProtocol::server_hostname>, nullptr, nullptr, nullptr},
    {"_server_side", get_flag<&TlsProtocol::server_side>, nullptr, nullptr, nullptr},
    {"_extra", get<&TlsProtocol::extra>, nullptr, nullptr, nullptr},
    {"_sslobj", get<&TlsProtocol::ssl_object>, replace<&TlsProtocol::replace_ssl_object>, nullptr,
     nullptr},
    {"_incoming", get<&TlsProtocol::incoming>, replace<&TlsProtocol::replace_incoming>, nullptr,
     nullptr},
    {"_outgoing", get<&TlsProtocol::outgoing>, replace<&TlsProtocol::replace_outgoing>, nullptr,
     nullptr},
    {"_handshake_timeout_handle", get<&TlsProtocol::handshake_timer>, nullptr, nullptr, nullptr},
    {"_shutdown_timeout_handle", get<&TlsProtocol::shutdown_timer>, nullptr, nullptr, nullptr},
    {"_ssl_handshake_timeout", get<&TlsProtocol::handshake_timeout>, nullptr, nullptr, nullptr},
    {"_ssl_shutdown_timeout", get<&TlsProtocol::shutdown_timeout>, nullptr, nullptr, nullptr},
    {"_app_reading_paused", get_flag<&TlsProtocol::reading_paused>, nullptr, nullptr, nullptr},
    {"_app_writing_paused", get_flag<&TlsProtocol::writing_paused>, nullptr, nullptr, nullptr},
    {"_write_buffer_size", get_number<&TlsProtocol::backlog_size>, nullptr, nullptr, nullptr},
    {"_conn_lost", get_number<&TlsProtocol::lost_writes>, nullptr, nullptr, nullptr},
    {"_direct", get_flag<&TlsProtocol::is_direct>, nullptr,
     "Whether OpenSSL is called without a detour through Python.", nullptr},
    {"_state", get_stage<&TlsState::protocol_states, &TlsProtocol::stage>, nullptr, nullptr,
     nullptr},
    {"_app_state", get_stage<&TlsState::application_states, &TlsProtocol::application_stage>,
     nullptr, nullptr, nullptr},
    {}};

PyMemberDef g_members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(ProtocolObject, dictionary), READONLY, nullptr},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(ProtocolObject, weak_references), READONLY,
     nullptr},
    {}};

PyDoc_STRVAR(g_doc,
             "SSLProtocol(loop, app_protocol, sslcontext, waiter, server_side=False, "
             "server_hostname=None,\n            call_connection_made=True, "
             "ssl_handshake_timeout=None, ssl_shutdown_timeout=None)\n\n"
             "asyncio.sslproto.SSLProtocol, native: TLS over any transport.");

PyType_Slot g_slots[] = {{Py_tp_doc, const_cast<char*>(g_doc)},
                         {Py_tp_new, reinterpret_cast<void*>(protocol_new)},
                         {Py_tp_dealloc, reinterpret_cast<void*>(protocol_dealloc)},
                         {Py_tp_traverse, reinterpret_cast<void*>(protocol_traverse)},
                         {Py_tp_clear, reinterpret_cast<void*>(protocol_clear)},
                         {Py_tp_methods, g_methods},
                         {Py_tp_getset, g_attributes},
                         {Py_tp_members, g_members},
                         {0, nullptr}};

PyType_Spec g_spec{"erlang_loop.SSLProtocol", sizeof(ProtocolObject), 0,
                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, g_slots};

// Time-outs do not keep the connection alive that they are for.
PyObject* call_weakly(PyObject*, PyObject* args) {
  PyObject *reference = nullptr, *method = nullptr;
  if (PyArg_ParseTuple(args, "OO", &reference, &method) == 0) return nullptr;
  return guarded<PyObject*>(nullptr, [&] {
    const py::Ref object = py::check(PyObject_CallNoArgs(reference));
    if (object.get() == Py_None) return Py_NewRef(Py_None);
    return py::check(PyObject_CallMethodNoArgs(object.get(), method)).release();
  });
}

PyMethodDef g_call_weakly{"call_weakly", call_weakly, METH_VARARGS, nullptr};

void look_up_ssl(TlsState& state) {
  const py::Ref ssl = py::Ref::steal(PyImport_ImportModule("ssl"));
  if (!ssl) {  // an interpreter without OpenSSL: SSLProtocol says so when it is asked for
    py::Error error = py::Error::fetch();
    if (!error.matches(PyExc_ImportError)) throw py::Error(error);
    return;
  }
  const auto from = [&](const char* name) { return py::attribute(ssl.get(), name); };
  state.library = LibSsl::of(py::import("_ssl").get());
  state.ssl_error = from("SSLError").release();
  state.certificate_error = from("CertificateError").release();
  state.again =
      py::check(PyTuple_Pack(2, from("SSLWantReadError").get(), from("SSLSyscallError").get()))
          .release();
  state.ssl_object = from("SSLObject").release();
  state.ssl_object_read = py::attribute(state.ssl_object, "read").release();
  state.ssl_object_write = py::attribute(state.ssl_object, "write").release();
  state.memory_bio = from("MemoryBIO").release();
}

void look_up(TlsState& state) {
#define LOOP_TLS_INTERN(name) \
  state.names.name = py::check(PyUnicode_InternFromString(#name)).release();
  LOOP_TLS_NAMES(LOOP_TLS_INTERN)
#undef LOOP_TLS_INTERN
  const py::Ref asyncio = py::import("asyncio");
  const py::Ref log = py::import("asyncio.log");
  const py::Ref sslproto = py::import("asyncio.sslproto");
  const auto from = [](const py::Ref& module, const char* name) {
    return py::attribute(module.get(), name).release();
  };
  const auto members = [&](const char* name) {
    const py::Ref states = py::attribute(sslproto.get(), name);
    return py::check(PySequence_Tuple(states.get())).release();
  };
  state.buffered_protocol = from(asyncio, "BufferedProtocol");
  state.cancelled_error = from(asyncio, "CancelledError");
  state.timeout_error = from(asyncio, "TimeoutError");
  state.constants = py::import("asyncio.constants").release();
  state.create_context = from(sslproto, "_create_transport_context");
  state.logger = from(log, "logger");
  state.protocol_states = members("SSLProtocolState");
  state.application_states = members("AppProtocolState");
  state.call_weakly = py::check(PyCFunction_New(&g_call_weakly, nullptr)).release();
  state.debug_arguments = py::check(Py_BuildValue("(s)", "exc_info")).release();
  state.wrap_arguments =
      py::check(Py_BuildValue("(ss)", "server_side", "server_hostname")).release();
  look_up_ssl(state);
}

PyObject* protocol_new(PyTypeObject* type, PyObject* args, PyObject* keywords) {
  static const char* names[] = {"loop",
                                "app_protocol",
                                "sslcontext",
                                "waiter",
                                "server_side",
                                "server_hostname",
                                "call_connection_made",
                                "ssl_handshake_timeout",
                                "ssl_shutdown_timeout",
                                nullptr};
  TlsProtocol::Options options;
  int server_side = 0;
  int call_connection_made = 1;
  PyObject *context = nullptr, *waiter = nullptr, *hostname = Py_None;
  PyObject *handshake_timeout = Py_None, *shutdown_timeout = Py_None;
  if (PyArg_ParseTupleAndKeywords(args, keywords, "OOOO|pOpOO:SSLProtocol",
                                  const_cast<char**>(names), &options.loop, &options.application,
                                  &context, &waiter, &server_side, &hostname, &call_connection_made,
                                  &handshake_timeout, &shutdown_timeout) == 0)
    return nullptr;
  options.context = unless_none(context);
  options.waiter = unless_none(waiter);
  options.server_hostname = unless_none(hostname);
  options.handshake_timeout = unless_none(handshake_timeout);
  options.shutdown_timeout = unless_none(shutdown_timeout);
  options.server_side = server_side != 0;
  options.call_connection_made = call_connection_made != 0;
  return guarded<PyObject*>(nullptr, [&] {
    TlsState* state = tls_state_of_type(type);
    if (state == nullptr) py::throw_fetched();
    py::Ref self = py::check(type->tp_alloc(type, 0));
    object_of(self.get()).tls = new TlsProtocol(*state, self.get());
    tls_of(self.get()).open(options);
    return self.release();
  });
}

int protocol_exec(PyObject* module, TlsState& state) {
  return guarded(-1, [&] {
    auto* base = reinterpret_cast<PyTypeObject*>(state.buffered_protocol);
    if (base->tp_basicsize != sizeof(PyObject))
      py::raise(PyExc_ImportError, "asyncio.BufferedProtocol has slots");
    py::Ref type = py::check(PyType_FromModuleAndSpec(module, &g_spec, state.buffered_protocol));
    const py::Ref size = py::check(PyLong_FromSsize_t(TlsProtocol::kReceiveBuffer));
    py::check_status(PyObject_SetAttrString(type.get(), "max_size", size.get()));
    state.protocol_type = reinterpret_cast<PyTypeObject*>(type.release());
    return PyModule_AddType(module, state.protocol_type);
  });
}

// The places of all references the state owns.
template <typename Visit>
int each(TlsState& state, Visit visit) {
#define LOOP_TLS_VISIT(name) \
  if (const int status = visit(state.name)) return status;
  LOOP_TLS_OBJECTS(LOOP_TLS_VISIT)
#undef LOOP_TLS_VISIT
#define LOOP_TLS_VISIT(name) \
  if (const int status = visit(state.names.name)) return status;
  LOOP_TLS_NAMES(LOOP_TLS_VISIT)
#undef LOOP_TLS_VISIT
  return 0;
}

}  // namespace

TlsProtocol& tls_of(PyObject* object) { return *object_of(object).tls; }

int tls_exec(PyObject* module, TlsState& state) {
  const int looked_up = guarded(-1, [&] {
    look_up(state);
    return 0;
  });
  if (looked_up < 0 || tls_transport_exec(module, state) < 0) return -1;
  return protocol_exec(module, state);
}

int tls_traverse(TlsState& state, visitproc visit, void* arg) {
  Py_VISIT(state.protocol_type);
  Py_VISIT(state.transport_type);
  return each(state, [&](PyObject*& object) {
    Py_VISIT(object);
    return 0;
  });
}

void tls_clear(TlsState& state) {
  state.native_transport = nullptr;
  delete[] std::exchange(state.scratch.memory, nullptr);
  Py_CLEAR(state.protocol_type);
  Py_CLEAR(state.transport_type);
  each(state, [](PyObject*& object) {
    Py_CLEAR(object);
    return 0;
  });
}

bool tls_takes_bytes(const TlsState& state, PyObject* protocol) {
  return Py_IS_TYPE(protocol, state.protocol_type) != 0;
}

int tls_feed(PyObject* protocol, const char* data, std::size_t size) {
  TlsProtocol& tls = tls_of(protocol);
  if (!tls.is_open()) return 0;
  const py::Ref alive = py::Ref::borrow(protocol);
  return guarded(-1, [&] {
    tls.feed(data, size);
    return 0;
  });
}

}  // namespace loop
