#include "cnode/web/awaitables.hpp"

#include <utility>

#include "cnode/web/exchange.hpp"

namespace web {
namespace {

struct ReadyObject {
  PyObject_HEAD PyObject* value;  // null once it was taken
};

struct WaitingObject {
  PyObject_HEAD PyObject* exchange;
  Wait what;
};

ReadyObject& ready_of(PyObject* self) { return *reinterpret_cast<ReadyObject*>(self); }
WaitingObject& waiting_of(PyObject* self) { return *reinterpret_cast<WaitingObject*>(self); }

PyObject* itself(PyObject* self) { return Py_NewRef(self); }

void stop_iteration(PyObject* value) {
  // A tuple or an exception as value would be taken for arguments.
  PyObject* error = PyObject_CallOneArg(PyExc_StopIteration, value);
  if (error == nullptr) return;
  PyErr_SetObject(PyExc_StopIteration, error);
  Py_DECREF(error);
}

// For those who step by hand: a result is a StopIteration.
template <sendfunc kSend>
PyObject* step(PyObject* self) {
  PyObject* result = nullptr;
  switch (kSend(self, Py_None, &result)) {
    case PYGEN_NEXT:
      return result;
    case PYGEN_RETURN:
      stop_iteration(result);
      Py_DECREF(result);
      return nullptr;
    case PYGEN_ERROR:
      break;
  }
  return nullptr;
}

template <sendfunc kSend>
PyObject* step_with(PyObject* self, PyObject*) {
  return step<kSend>(self);
}

// throw(exception) or throw(type, value, traceback)
PyObject* raise_thrown(PyObject*, PyObject* arguments) {
  PyObject* type = nullptr;
  PyObject* value = Py_None;
  PyObject* traceback = Py_None;
  if (PyArg_ParseTuple(arguments, "O|OO:throw", &type, &value, &traceback) == 0) return nullptr;
  if (PyExceptionInstance_Check(type)) {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(type)), type);
  } else if (PyExceptionInstance_Check(value)) {
    PyErr_SetObject(type, value);
  } else {
    PyErr_SetNone(type);
  }
  return nullptr;
}

PyObject* nothing(PyObject*, PyObject*) { Py_RETURN_NONE; }

// --- Ready

PySendResult ready_send(PyObject* self, PyObject*, PyObject** result) {
  PyObject*& value = ready_of(self).value;
  if (value == Py_None) {  // the one that all share
    *result = Py_NewRef(Py_None);
    return PYGEN_RETURN;
  }
  if (value == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited message");
    return PYGEN_ERROR;
  }
  *result = std::exchange(value, nullptr);
  return PYGEN_RETURN;
}

void ready_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  Py_CLEAR(ready_of(self).value);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef g_ready_methods[] = {{"send", step_with<ready_send>, METH_O, nullptr},
                                 {"throw", raise_thrown, METH_VARARGS, nullptr},
                                 {"close", nothing, METH_NOARGS, nullptr},
                                 {}};

PyType_Slot g_ready_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(ready_dealloc)},
    {Py_am_await, reinterpret_cast<void*>(itself)},
    {Py_am_send, reinterpret_cast<void*>(ready_send)},
    {Py_tp_iter, reinterpret_cast<void*>(itself)},
    {Py_tp_iternext, reinterpret_cast<void*>(static_cast<iternextfunc>(step<ready_send>))},
    {Py_tp_methods, g_ready_methods},
    {0, nullptr}};

PyType_Spec g_ready_spec{"erlang_web._http.Ready", sizeof(ReadyObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, g_ready_slots};

// --- Waiting

PySendResult waiting_send(PyObject* self, PyObject*, PyObject** result) {
  const WaitingObject& object = waiting_of(self);
  return guarded<PySendResult>(PYGEN_ERROR, [&] {
    if (object.exchange == nullptr) py::raise(PyExc_RuntimeError, "awaited after its end");
    Exchange& exchange = exchange_of(object.exchange);
    if (py::Ref value = exchange.poll(object.what)) {
      *result = value.release();
      return PYGEN_RETURN;
    }
    *result = exchange.wait(object.what).release();
    return PYGEN_NEXT;
  });
}

int waiting_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(waiting_of(self).exchange);
  return 0;
}

int waiting_clear(PyObject* self) {
  Py_CLEAR(waiting_of(self).exchange);
  return 0;
}

void waiting_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  waiting_clear(self);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef g_waiting_methods[] = {{"send", step_with<waiting_send>, METH_O, nullptr},
                                   {"throw", raise_thrown, METH_VARARGS, nullptr},
                                   {"close", nothing, METH_NOARGS, nullptr},
                                   {}};

PyType_Slot g_waiting_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(waiting_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(waiting_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(waiting_clear)},
    {Py_am_await, reinterpret_cast<void*>(itself)},
    {Py_am_send, reinterpret_cast<void*>(waiting_send)},
    {Py_tp_iter, reinterpret_cast<void*>(itself)},
    {Py_tp_iternext, reinterpret_cast<void*>(static_cast<iternextfunc>(step<waiting_send>))},
    {Py_tp_methods, g_waiting_methods},
    {0, nullptr}};

PyType_Spec g_waiting_spec{
    "erlang_web._http.Waiting", sizeof(WaitingObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, g_waiting_slots};

}  // namespace

int awaitables_exec(PyObject* module, State& state) {
  state.ready_type =
      reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &g_ready_spec, nullptr));
  state.waiting_type =
      reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &g_waiting_spec, nullptr));
  if (state.ready_type == nullptr || state.waiting_type == nullptr) return -1;
  return guarded(-1, [&] {
    state.ready_none = ready(state, py::Ref::borrow(Py_None)).release();
    return 0;
  });
}

py::Ref ready(State& state, py::Ref value) {
  py::Ref object = py::check(state.ready_type->tp_alloc(state.ready_type, 0));
  ready_of(object.get()).value = value.release();
  return object;
}

py::Ref waiting(State& state, PyObject* exchange, Wait what) {
  py::Ref object = py::check(state.waiting_type->tp_alloc(state.waiting_type, 0));
  waiting_of(object.get()).exchange = Py_NewRef(exchange);
  waiting_of(object.get()).what = what;
  return object;
}

}  // namespace web
