#include "cnode/loop/flow.hpp"

#include "cnode/py/error.hpp"

namespace loop {

int tell_exception(Loop& loop, const char* message, PyObject* transport, PyObject* protocol) {
  if (must_leave()) return -1;
  const py::Error error = py::Error::fetch();
  PyObject* context =
      Py_BuildValue("{s:s,s:O,s:O,s:O}", "message", message, "exception", error.exception(),
                    "transport", transport, "protocol", protocol == nullptr ? Py_None : protocol);
  PyObject* done = nullptr;
  if (context != nullptr) {
    done = PyObject_CallMethodOneArg(loop.object(), loop.state().names.call_exception_handler,
                                     context);
    Py_DECREF(context);
  }
  Py_XDECREF(done);
  if (done != nullptr) return 0;
  if (must_leave()) return -1;
  PyErr_WriteUnraisable(transport);
  return 0;
}

int Flow::maybe_pause(Loop& loop, PyObject* transport, PyObject* protocol, std::size_t waiting) {
  if (paused || waiting <= high) return 0;
  paused = true;
  PyObject* done = PyObject_CallMethodNoArgs(protocol, loop.state().names.pause_writing);
  Py_XDECREF(done);
  if (done != nullptr) return 0;
  return tell_exception(loop, "protocol.pause_writing() failed", transport, protocol);
}

int Flow::maybe_resume(Loop& loop, PyObject* transport, PyObject* protocol, std::size_t waiting) {
  if (!paused || waiting > low) return 0;
  paused = false;
  PyObject* done = PyObject_CallMethodNoArgs(protocol, loop.state().names.resume_writing);
  Py_XDECREF(done);
  if (done != nullptr) return 0;
  return tell_exception(loop, "protocol.resume_writing() failed", transport, protocol);
}

int Flow::set_limits(PyObject* arguments, PyObject* options) {
  PyObject* wanted_high = Py_None;
  PyObject* wanted_low = Py_None;
  static const char* names[] = {"high", "low", nullptr};
  if (PyArg_ParseTupleAndKeywords(arguments, options, "|OO", const_cast<char**>(names),
                                  &wanted_high, &wanted_low) == 0)
    return -1;
  Py_ssize_t new_high = -1;
  Py_ssize_t new_low = -1;
  if (wanted_low != Py_None) {
    new_low = PyNumber_AsSsize_t(wanted_low, PyExc_OverflowError);
    if (new_low == -1 && PyErr_Occurred() != nullptr) return -1;
  }
  if (wanted_high != Py_None) {
    new_high = PyNumber_AsSsize_t(wanted_high, PyExc_OverflowError);
    if (new_high == -1 && PyErr_Occurred() != nullptr) return -1;
  } else {
    new_high = wanted_low == Py_None ? static_cast<Py_ssize_t>(kHigh)
                                     : (new_low > PY_SSIZE_T_MAX / 4 ? new_low : 4 * new_low);
  }
  if (wanted_low == Py_None) new_low = new_high / 4;
  if (new_high < new_low || new_low < 0) {
    PyErr_Format(PyExc_ValueError, "high (%zd) must be >= low (%zd) must be >= 0", new_high,
                 new_low);
    return -1;
  }
  high = static_cast<std::size_t>(new_high);
  low = static_cast<std::size_t>(new_low);
  return 0;
}

}  // namespace loop
