// What the functions and types that Python sees have in common: arguments, errors, and the way to
// the reactor. Under the GIL.
#pragma once

#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <utility>

#include "cnode/bridge/front.hpp"
#include "cnode/bridge/runtime.hpp"
#include "cnode/py/error.hpp"
#include "cnode/py/gil.hpp"
#include "cnode/term/codec.hpp"

namespace bridge {

// The node this interpreter runs in; raises RuntimeError outside one.
inline Runtime& running() {
  Runtime* runtime = Runtime::current();
  if (runtime == nullptr && Front::current() != nullptr)
    py::raise(PyExc_RuntimeError,
              "a worker process (--processes) has no processes, channels or monitors of its own");
  if (runtime == nullptr)
    py::raise(PyExc_RuntimeError, "this interpreter does not run inside a node");
  return *runtime;
}

// Runs `body`, which returns a new reference or throws.
template <class Body>
PyObject* guarded(Body body) noexcept {
  try {
    return body().release();
  } catch (py::Error& error) {
    std::move(error).restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// Asks the reactor, which owns the tables, and waits for its answer without the GIL.
template <class Ask>
auto on_reactor(Runtime& runtime, Ask ask) {
  using Answer = decltype(ask(std::declval<dist::Node&>()));
  auto promise = std::make_shared<std::promise<Answer>>();
  auto future = promise->get_future();
  runtime.answers().post([ask, promise](dist::Node& node) { promise->set_value(ask(node)); });
  const py::GilRelease released;
  if (future.wait_for(std::chrono::seconds(10)) != std::future_status::ready) {
    throw std::runtime_error("the node is stopping");
  }
  return future.get();
}

// Has a process of this node send a signal, and returns when it stands in the link's queue: what
// this thread sends next must not overtake it.
template <class Send>
void send_signal(Runtime& runtime, dist::ProcessId id, Send send) {
  on_reactor(runtime, [id, send](dist::Node& node) {
    dist::Process* own = node.processes().find(id);
    if (own != nullptr) send(node, *own);
    return own != nullptr;
  });
}

inline py::Ref none() { return py::Ref::borrow(Py_None); }
inline py::Ref boolean(bool value) { return py::Ref::borrow(value ? Py_True : Py_False); }

inline etf::Pid pid_argument(Runtime& runtime, PyObject* object) {
  etf::Pid pid;
  if (!runtime.codec().as_pid(object, pid)) py::raise(PyExc_TypeError, "a Pid is needed");
  return pid;
}

inline std::string text_argument(PyObject* object, const char* what) {
  if (!PyUnicode_Check(object)) py::raise(PyExc_TypeError, std::string(what) + " must be a str");
  return py::text_of(object);
}

// A pid, a name on this node, or (name, node).
inline Asker::Target target_argument(Runtime& runtime, PyObject* object) {
  Asker::Target to;
  etf::Pid pid;
  if (runtime.codec().as_pid(object, pid)) {
    to.node = pid.node;
    to.pid = std::move(pid);
    return to;
  }
  if (PyTuple_Check(object) && PyTuple_GET_SIZE(object) == 2) {
    to.name = text_argument(PyTuple_GET_ITEM(object, 0), "a process's name");
    to.node = text_argument(PyTuple_GET_ITEM(object, 1), "a node's name");
  } else if (PyUnicode_Check(object)) {
    to.name = py::text_of(object);
    to.node = runtime.node().name();
  } else {
    py::raise(PyExc_TypeError, "a process is a Pid, a name or (name, node)");
  }
  if (to.name.empty() || !etf::is_utf8(to.name, 255))
    py::raise(PyExc_ValueError, "a process's name has 1 to 255 characters");
  return to;
}

[[noreturn]] inline void raise_no_connection(const char* why = nullptr) {
  py::Ref type = py::attribute(py::import("erlang.exceptions").get(), "NoConnection");
  py::Ref error = why == nullptr ? py::check(PyObject_CallNoArgs(type.get()))
                                 : py::check(PyObject_CallFunction(type.get(), "s", why));
  PyErr_SetObject(type.get(), error.get());
  py::throw_fetched();
}

inline etf::Buffer encode_pid(const etf::Pid& pid) {
  etf::Buffer bytes;
  etf::Writer(bytes).pid(pid);
  return bytes;
}

inline etf::PidView view_of(const etf::Buffer& encoded) {
  etf::Reader in(encoded.bytes());
  return *in.pid();
}

inline dist::ProcessId local_id(const etf::Pid& pid) {
  return (std::uint64_t{pid.serial} << 32) | pid.id;
}

inline bool is_local(Runtime& runtime, const etf::Pid& pid) {
  return pid.node == runtime.node().name() && pid.creation == runtime.node().creation();
}

}  // namespace bridge
