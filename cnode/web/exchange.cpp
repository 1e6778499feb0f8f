#include "cnode/web/exchange.hpp"

#include <memory>
#include <utility>

#include "cnode/web/connection.hpp"

namespace web {
namespace {

struct ExchangeObject {
  PyObject_HEAD Exchange* exchange;
};

Exchange*& exchange_place(PyObject* self) {
  return reinterpret_cast<ExchangeObject*>(self)->exchange;
}

PyObject* exchange_receive(PyObject* self, PyObject*) {
  return guarded<PyObject*>(nullptr, [&] { return exchange_of(self).receive().release(); });
}
PyObject* exchange_send(PyObject* self, PyObject* message) {
  const py::Ref alive = py::Ref::borrow(self);
  return guarded<PyObject*>(nullptr, [&] { return exchange_of(self).send(message).release(); });
}
PyObject* exchange_done(PyObject* self, PyObject* task) {
  const py::Ref alive = py::Ref::borrow(self);
  return guarded<PyObject*>(nullptr, [&] {
    exchange_of(self).task_done(task);
    return Py_NewRef(Py_None);
  });
}

PyMethodDef g_receive{"receive", exchange_receive, METH_NOARGS,
                      "receive(): an awaitable of the next event, a dict (ASGI)."};
PyMethodDef g_send{"send", exchange_send, METH_O,
                   "send(message): an awaitable; done when more may be sent (ASGI)."};
PyMethodDef g_done{"done", exchange_done, METH_O, nullptr};

int exchange_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return exchange_place(self) == nullptr ? 0 : exchange_place(self)->traverse(visit, arg);
}

int exchange_clear(PyObject* self) {
  if (exchange_place(self) != nullptr) exchange_place(self)->clear();
  return 0;
}

void exchange_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  exchange_clear(self);
  delete exchange_place(self);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyType_Slot g_exchange_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(exchange_dealloc)},
                                  {Py_tp_traverse, reinterpret_cast<void*>(exchange_traverse)},
                                  {Py_tp_clear, reinterpret_cast<void*>(exchange_clear)},
                                  {0, nullptr}};

PyType_Spec g_exchange_spec{
    "erlang_web._http.Exchange", sizeof(ExchangeObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, g_exchange_slots};

}  // namespace

int exchange_exec(PyObject* module, State& state) {
  state.exchange_type =
      reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &g_exchange_spec, nullptr));
  return state.exchange_type == nullptr ? -1 : 0;
}

Exchange& exchange_of(PyObject* object) { return *exchange_place(object); }

py::Ref new_exchange(State& state, std::unique_ptr<Exchange> exchange) {
  py::Ref object = py::check(state.exchange_type->tp_alloc(state.exchange_type, 0));
  exchange->set_object(object.get());
  exchange_place(object.get()) = exchange.release();
  return object;
}

Exchange::Exchange(Connection& connection, PyObject* connection_object)
    : connection_(connection), connection_object_(Py_NewRef(connection_object)) {}

State& Exchange::state() const { return connection().service().state(); }

Connection& Exchange::connection() const {
  // The collector may have taken us apart before a generator's last words reach us.
  if (connection_object_ == nullptr) py::raise(PyExc_RuntimeError, "the connection is gone");
  return connection_;
}

void Exchange::raise_gone() const {
  PyErr_SetString(state().client_gone, "the client has disconnected");
  py::throw_fetched();
}

py::Ref Exchange::receive() {
  State& names = state();
  if (py::Ref value = poll(Wait::kReceive)) return ready(names, std::move(value));
  return waiting(names, object_, Wait::kReceive);
}

py::Ref Exchange::may_write() {
  if (connection().writing_paused() && !gone_) return waiting(state(), object_, Wait::kSend);
  return py::Ref::borrow(state().ready_none);
}

py::Ref Exchange::wait(Wait what) {
  py::Ref future = call_method(connection().service().loop(), state().names.create_future);
  // What a task that is handed a future by __await__ looks for.
  py::check_status(PyObject_SetAttr(future.get(), state().names.asyncio_future_blocking, Py_True));
  waiters_[static_cast<int>(what)].push_back(Py_NewRef(future.get()));
  return future;
}

void Exchange::wake(Wait what) {
  auto& waiters = waiters_[static_cast<int>(what)];
  if (waiters.empty()) return;
  std::vector<py::Ref> all;
  for (PyObject* one : std::exchange(waiters, {})) all.push_back(py::Ref::steal(one));
  for (const auto& one : all) {
    if (is_true(call_method(one.get(), state().names.done).get())) continue;  // cancelled
    call_method(one.get(), state().names.set_result, Py_None);
  }
}

void Exchange::start(PyObject* application, const py::Ref& scope, const py::Ref& context) {
  State& names = state();
  const py::Ref receive = py::check(PyCFunction_New(&g_receive, object_));
  const py::Ref send = py::check(PyCFunction_New(&g_send, object_));
  PyObject* arguments[] = {scope.get(), receive.get(), send.get()};
  py::Ref awaitable = py::Ref::steal(PyObject_Vectorcall(application, arguments, 3, nullptr));
  if (!awaitable) {
    const py::Error error = py::Error::fetch();
    log_failure(error.exception());
    return failed();
  }
  py::Ref task;
  PyObject* loop = connection().service().loop();
  if (PyCoro_CheckExact(awaitable.get())) {
    PyObject* with[] = {awaitable.get(), loop, context.get()};
    task = py::check(PyObject_Vectorcall(names.task_class, with, 1, names.task_names));
  } else {
    task = py::check(PyObject_CallOneArg(names.ensure_future, awaitable.get()));
  }
  task_ = Py_NewRef(task.get());
  const py::Ref done = py::check(PyCFunction_New(&g_done, object_));
  PyObject* with[] = {task.get(), done.get(), context.get()};
  const py::Ref name = py::check(PyTuple_Pack(1, PyTuple_GET_ITEM(names.task_names, 1)));
  py::check(PyObject_VectorcallMethod(names.names.add_done_callback, with, 2, name.get()));
}

void Exchange::task_done(PyObject* task) {
  Py_CLEAR(task_);
  py::Ref exception = py::Ref::steal(PyObject_CallMethodNoArgs(task, state().names.exception));
  if (!exception) {  // it was cancelled
    PyErr_Clear();
    return failed();
  }
  if (exception.get() == Py_None) return ended();
  const int gone = PyErr_GivenExceptionMatches(exception.get(), state().client_gone);
  if (gone == 0) log_failure(exception.get());
  failed();
}

void Exchange::log_failure(PyObject* exception) {
  const py::Ref text = py::check(PyUnicode_FromString("an application raised an exception"));
  const py::Ref options = py::check(PyDict_New());
  py::check_status(PyDict_SetItemString(options.get(), "exc_info", exception));
  const py::Ref arguments = py::check(PyTuple_Pack(1, text.get()));
  const py::Ref error = py::check(PyObject_GetAttr(state().logger, state().names.error));
  py::check(PyObject_Call(error.get(), arguments.get(), options.get()));
}

void Exchange::disconnected() {
  gone_ = true;
  wake(Wait::kReceive);
  wake(Wait::kSend);
}

int Exchange::traverse(visitproc visit, void* arg) {
  Py_VISIT(connection_object_);
  Py_VISIT(task_);
  for (auto& waiters : waiters_) {
    for (PyObject* one : waiters) Py_VISIT(one);
  }
  return 0;
}

void Exchange::clear() {
  Py_CLEAR(connection_object_);
  Py_CLEAR(task_);
  for (auto& waiters : waiters_) {
    for (PyObject* one : std::exchange(waiters, {})) Py_DECREF(one);
  }
}

}  // namespace web
