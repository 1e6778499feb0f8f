#include "cnode/loop/module.hpp"

#include <cstdlib>
#include <initializer_list>
#include <utility>

#include "cnode/loop/datagram.hpp"
#include "cnode/loop/handle.hpp"
#include "cnode/loop/loop.hpp"
#include "cnode/loop/pipes.hpp"
#include "cnode/loop/resolve.hpp"
#include "cnode/loop/sockets.hpp"
#include "cnode/loop/state.hpp"
#include "cnode/loop/stream.hpp"
#include "cnode/loop/tls.hpp"
#include "cnode/py/error.hpp"

namespace loop {
namespace {

State& raw_state(PyObject* module) { return *static_cast<State*>(PyModule_GetState(module)); }

// The places of all references the state owns.
template <typename Visit>
int each(State& state, Visit visit) {
  for (PyObject** place : {&state.handle_class,
                           &state.timer_class,
                           &state.transport_class,
                           &state.datagram_class,
                           &state.read_pipe_class,
                           &state.write_pipe_class,
                           &state.buffered_class,
                           &state.transport_socket,
                           &state.socket_class,
                           &state.socket_family,
                           &state.socket_kind,
                           &state.socket_proto,
                           &state.families,
                           &state.kinds,
                           &state.extract_stack,
                           &state.report_callback,
                           &state.report_slow,
                           &state.transport_repr,
                           &state.unclosed,
                           &state.report_fatal,
                           &state.note,
                           &state.warn_lost_writes,
                           &state.sendfile_try_native,
                           &state.call_callback_names,
                           &state.empty_bytes}) {
    if (const int status = visit(*place)) return status;
  }
  for (PyTypeObject** place : {&state.loop_type, &state.handle_type, &state.timer_type,
                               &state.stream_type, &state.datagram_type, &state.socket_watch_type,
                               &state.read_pipe_type, &state.write_pipe_type}) {
    auto* object = reinterpret_cast<PyObject*>(*place);
    const int status = visit(object);
    *place = reinterpret_cast<PyTypeObject*>(object);
    if (status != 0) return status;
  }
#define LOOP_VISIT_NAME(name) \
  if (const int status = visit(state.names.name)) return status;
  LOOP_NAMES(LOOP_VISIT_NAME)
#undef LOOP_VISIT_NAME
  return 0;
}

int traverse(PyObject* module, visitproc visit, void* arg) {
  if (TlsState* tls = raw_state(module).tls; tls != nullptr) {
    if (const int status = tls_traverse(*tls, visit, arg)) return status;
  }
  if (const int status = stream_reader_traverse(raw_state(module).stream_reader, visit, arg))
    return status;
  return each(raw_state(module), [&](PyObject*& object) {
    Py_VISIT(object);
    return 0;
  });
}

int clear(PyObject* module) {
  State& state = raw_state(module);
  if (Shared* shared = std::exchange(state.shared, nullptr)) {
    free_handles(*shared);
    shared->orphan = true;
    ++shared->loops;
    shared->leave(shared->loops);  // frees it if there is nobody else
  }
  if (state.tls != nullptr) tls_clear(*state.tls);
  stream_reader_clear(state.stream_reader);
  return each(state, [](PyObject*& object) {
    Py_CLEAR(object);
    return 0;
  });
}

void free_module(void* module) {
  clear(static_cast<PyObject*>(module));
  delete std::exchange(raw_state(static_cast<PyObject*>(module)).tls, nullptr);
}

void look_up(State& state) {
  py::Ref asyncio = py::import("asyncio");
  py::Ref glue = py::import("erlang_loop._glue");
  const auto from = [](const py::Ref& module, const char* name) {
    return py::attribute(module.get(), name).release();
  };
  state.handle_class = from(asyncio, "Handle");
  state.timer_class = from(asyncio, "TimerHandle");
  // A Transport; the fallback of sendfile() asks for the mixin.
  state.transport_class = from(py::import("asyncio.transports"), "_FlowControlMixin");
  state.datagram_class = from(glue, "DatagramBase");
  state.read_pipe_class = from(asyncio, "ReadTransport");
  state.write_pipe_class = from(glue, "WritePipeBase");
  state.buffered_class = from(asyncio, "BufferedProtocol");
  state.transport_socket = from(py::import("asyncio.trsock"), "TransportSocket");
  state.socket_class = from(py::import("socket"), "socket");
  const py::Ref plain_socket = py::attribute(py::import("_socket").get(), "socket");
  state.socket_family = from(plain_socket, "family");
  state.socket_kind = from(plain_socket, "type");
  state.socket_proto = from(plain_socket, "proto");
  state.families = from(glue, "FAMILIES");
  state.kinds = from(glue, "KINDS");
  state.extract_stack = from(py::import("asyncio.format_helpers"), "extract_stack");
  state.report_callback = from(glue, "report_callback");
  state.report_slow = from(glue, "report_slow");
  state.report_fatal = from(glue, "report_fatal");
  state.transport_repr = from(glue, "transport_repr");
  state.unclosed = from(glue, "unclosed");
  state.note = from(glue, "note");
  state.warn_lost_writes = from(glue, "warn_lost_writes");
  state.sendfile_try_native =
      from(py::attribute(py::import("asyncio.constants").get(), "_SendfileMode"), "TRY_NATIVE");
  state.empty_bytes = py::check(PyBytes_FromStringAndSize(nullptr, 0)).release();
#define LOOP_INTERN_NAME(name) \
  state.names.name = py::check(PyUnicode_InternFromString(#name)).release();
  LOOP_NAMES(LOOP_INTERN_NAME)
#undef LOOP_INTERN_NAME
  state.call_callback_names = py::check(PyTuple_Pack(1, state.names.context)).release();
}

// glibc gives memory above 128 KB back to the kernel after every large message, and fetches it
// again for the next, until it has once seen a larger block freed.
void settle_malloc() {
  void* volatile block = std::malloc(std::size_t{2} << 20U);
  std::free(block);
}

int execute(PyObject* module) {
  settle_malloc();
  State& state = raw_state(module);
  state.shared = new Shared;
  try {
    look_up(state);
  } catch (py::Error& error) {
    std::move(error).restore();
    return -1;
  }
  if (stream_reader_exec(state.stream_reader) < 0) return -1;
  if (handle_exec(module, state) < 0) return -1;
  if (stream_exec(module, state) < 0) return -1;
  state.tls = new TlsState{};
  state.tls->native_transport = state.stream_type;
  state.tls->write_native = stream_write;
  state.tls->stream_reader = &state.stream_reader;
  if (tls_exec(module, *state.tls) < 0) return -1;
  if (loop_exec(module, state) < 0) return -1;
  if (sockets_exec(module, state) < 0) return -1;
  if (datagram_exec(module, state) < 0) return -1;
  if (pipes_exec(module, state) < 0) return -1;
  return resolve_exec(module, state);
}

PyObject* debug_counters(PyObject* module, PyObject*) {
  const State& state = raw_state(module);
  return Py_BuildValue("{s:L,s:L,s:L,s:L}", "loops", static_cast<long long>(state.shared->loops),
                       "handles", static_cast<long long>(state.shared->handles), "timers",
                       static_cast<long long>(state.shared->timers), "transports",
                       static_cast<long long>(state.shared->transports));
}

PyMethodDef g_functions[] = {{"accept_streams", accept_streams, METH_VARARGS, nullptr},
                             {"debug_counters", debug_counters, METH_NOARGS,
                              "debug_counters(): how many native objects live, by kind."},
                             {}};

PyModuleDef_Slot g_slots[] = {{Py_mod_exec, reinterpret_cast<void*>(execute)},
#if PY_VERSION_HEX >= 0x030C0000
                              {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
                              {0, nullptr}};

}  // namespace

PyModuleDef g_module{PyModuleDef_HEAD_INIT,
                     "erlang_loop._core",
                     nullptr,
                     sizeof(State),
                     g_functions,
                     g_slots,
                     traverse,
                     clear,
                     free_module};

State* state_of(PyObject* module) { return &raw_state(module); }

State* state_of_type(PyTypeObject* type) {
  PyObject* module = PyType_GetModuleByDef(type, &g_module);
  return module == nullptr ? nullptr : &raw_state(module);
}

TlsState* tls_state_of_type(PyTypeObject* type) {
  State* state = state_of_type(type);
  return state == nullptr ? nullptr : state->tls;
}

}  // namespace loop

PyObject* PyInit__core() { return PyModuleDef_Init(&loop::g_module); }
