// An interpreter inside a test program, with the `erlang` package of this tree and a codec for it.
#pragma once

#include <memory>
#include <stdexcept>

#include "cnode/py/error.hpp"
#include "cnode/term/codec.hpp"

namespace python_home {

inline PyObject* make_native() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_native", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr && term::add_to_module(module) < 0) Py_CLEAR(module);
  return module;
}

// Starts the interpreter at the first call, and never ends it: the process does.
inline term::Codec& codec() {
  static PyObject* module = [] {
    PyPreConfig before;
    PyPreConfig_InitIsolatedConfig(&before);
#if defined(__SANITIZE_ADDRESS__) || defined(__clang__)
    before.allocator = PYMEM_ALLOCATOR_MALLOC;  // so that sanitizers see each object
#endif
    Py_PreInitialize(&before);
    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    const PyStatus status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status)) throw std::runtime_error(status.err_msg);
    py::check_status(
        PyRun_SimpleString("import sys; sys.dont_write_bytecode = True\n"
                           "sys.path.insert(0, '" SIDEWINDER_SOURCE_DIR "/python')"));
    PyObject* native = py::check(make_native()).release();
    // The package also imports what a node offers, and no test here has one.
    PyObject* names = PyModule_GetDict(native);
    const char* absent =
        "def __getattr__(name):\n"
        "    if name.startswith('__'): raise AttributeError(name)\n"
        "    return object if name[0].isupper() else None\n";
    py::check(PyRun_String(absent, Py_file_input, names, names));
    py::check_status(PyDict_SetItemString(PyImport_GetModuleDict(), "erlang._native", native));
    py::import("erlang");
    return native;
  }();
  return term::codec_of(module);
}

// Whether two objects are equal; a failure to compare is an exception.
inline bool equal(PyObject* left, PyObject* right) {
  const int result = PyObject_RichCompareBool(left, right, Py_EQ);
  py::check_status(result);
  return result == 1;
}

inline py::Ref evaluate(const char* expression) {
  const py::Ref globals = py::check(PyDict_Copy(PyModule_GetDict(py::import("erlang").get())));
  return py::check(PyRun_String(expression, Py_eval_input, globals.get(), globals.get()));
}

}  // namespace python_home
