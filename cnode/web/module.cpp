#include "cnode/web/module.hpp"

#include <utility>

#include "cnode/web/awaitables.hpp"
#include "cnode/web/connection.hpp"
#include "cnode/web/exchange.hpp"
#include "cnode/web/scope.hpp"
#include "cnode/web/service.hpp"
#include "cnode/web/state.hpp"

namespace web {
namespace {

State& raw_state(PyObject* module) { return *static_cast<State*>(PyModule_GetState(module)); }

template <typename Visit>
int each(State& state, Visit visit) {
  for (PyObject** place :
       {&state.task_class, &state.ensure_future, &state.logger, &state.sha1, &state.to_base64,
        &state.client_gone, &state.task_names, &state.empty_bytes, &state.asgi, &state.version_10,
        &state.version_11, &state.ready_none}) {
    if (const int status = visit(*place)) return status;
  }
  for (PyTypeObject** place : {&state.service_type, &state.connection_type, &state.exchange_type,
                               &state.ready_type, &state.waiting_type}) {
    auto* object = reinterpret_cast<PyObject*>(*place);
    const int status = visit(object);
    *place = reinterpret_cast<PyTypeObject*>(object);
    if (status != 0) return status;
  }
#define WEB_VISIT(name, text) \
  if (const int status = visit(state.names.name)) return status;
  WEB_NAMES(WEB_VISIT)
#undef WEB_VISIT
  for (auto* known : {state.header_names, state.methods}) {
    if (known == nullptr) continue;
    for (auto& [text, object] : *known) {
      if (const int status = visit(object)) return status;
    }
  }
  return 0;
}

int traverse(PyObject* module, visitproc visit, void* arg) {
  return each(raw_state(module), [&](PyObject*& object) {
    Py_VISIT(object);
    return 0;
  });
}

int clear(PyObject* module) {
  return each(raw_state(module), [](PyObject*& object) {
    Py_CLEAR(object);
    return 0;
  });
}

void free_module(void* module) {
  auto* object = static_cast<PyObject*>(module);
  clear(object);
  delete std::exchange(raw_state(object).header_names, nullptr);
  delete std::exchange(raw_state(object).methods, nullptr);
}

void look_up(State& state) {
  const auto from = [](const char* module, const char* name) {
    return py::attribute(py::import(module).get(), name).release();
  };
  state.task_class = from("asyncio", "Task");
  state.ensure_future = from("asyncio", "ensure_future");
  const py::Ref get_logger = py::attribute(py::import("logging").get(), "getLogger");
  state.logger = py::check(PyObject_CallFunction(get_logger.get(), "s", "erlang_web")).release();
  state.sha1 = from("hashlib", "sha1");
  state.to_base64 = from("binascii", "b2a_base64");
  state.client_gone =
      py::check(PyErr_NewExceptionWithDoc(
                    "erlang_web.ClientDisconnected",
                    "send() after the client has gone. An application may let it pass.",
                    PyExc_OSError, nullptr))
          .release();
  state.task_names = py::check(Py_BuildValue("(ss)", "loop", "context")).release();
  state.empty_bytes = py::check(PyBytes_FromStringAndSize(nullptr, 0)).release();
#define WEB_INTERN(name, text) \
  state.names.name = py::check(PyUnicode_InternFromString(text)).release();
  WEB_NAMES(WEB_INTERN)
#undef WEB_INTERN
  state.asgi =
      py::check(Py_BuildValue("{s:s,s:s}", "version", "3.0", "spec_version", "2.4")).release();
  state.version_10 = py::check(PyUnicode_InternFromString("1.0")).release();
  state.version_11 = py::check(PyUnicode_InternFromString("1.1")).release();
  state.header_names = new std::unordered_map<std::string_view, PyObject*>;
  state.methods = new std::unordered_map<std::string_view, PyObject*>;
  fill_names(state);
}

int execute(PyObject* module) {
  State& state = raw_state(module);
  const int looked_up = guarded(-1, [&] {
    look_up(state);
    return PyModule_AddObjectRef(module, "ClientDisconnected", state.client_gone);
  });
  if (looked_up < 0 || awaitables_exec(module, state) < 0 || exchange_exec(module, state) < 0 ||
      connection_exec(module, state) < 0)
    return -1;
  return service_exec(module, state);
}

PyModuleDef_Slot g_module_slots[] = {
    {Py_mod_exec, reinterpret_cast<void*>(execute)},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, nullptr}};

}  // namespace

PyModuleDef g_module{PyModuleDef_HEAD_INIT, "erlang_web._http", nullptr, sizeof(State), nullptr,
                     g_module_slots,        traverse,           clear,   free_module};

State& state_of(PyObject* module) { return raw_state(module); }

}  // namespace web

PyObject* PyInit__http() { return PyModuleDef_Init(&web::g_module); }
