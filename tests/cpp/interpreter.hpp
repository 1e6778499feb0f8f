// The interpreter of tests whose code runs Python on threads of its own. It is started once and
// never ended; the test's own thread does not hold the GIL.
#pragma once

#include "cnode/py/python.hpp"

#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cnode/bridge/native_module.hpp"
#include "cnode/loop/module.hpp"
#include "cnode/py/error.hpp"
#include "cnode/py/gil.hpp"
#include "tests/cpp/dist_support.hpp"

namespace interpreter {

inline void start() {
  static const bool started = [] {
    PyImport_AppendInittab("erlang._native", PyInit__native);
    PyImport_AppendInittab(loop::kBuiltIn, PyInit__core);
    PyPreConfig before;
    PyPreConfig_InitIsolatedConfig(&before);
    before.allocator = PYMEM_ALLOCATOR_MALLOC;  // so that sanitizers see each object
    Py_PreInitialize(&before);
    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.install_signal_handlers = 0;
    const PyStatus status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status)) throw std::runtime_error(status.err_msg);
    PyRun_SimpleString(
        "import sys; sys.dont_write_bytecode = True\n"
        "sys.path.insert(0, '" SIDEWINDER_SOURCE_DIR "/python')\n");
    PyEval_SaveThread();
    return true;
  }();
  (void)started;
}

// Runs statements under the GIL; returns the name of the exception's class, or nothing.
inline std::string run(const char* code) {
  const py::GilGuard gil;
  try {
    const py::Ref globals = py::check(PyDict_New());
    py::check_status(PyDict_SetItemString(globals.get(), "__builtins__", PyEval_GetBuiltins()));
    py::check(PyRun_String(code, Py_file_input, globals.get(), globals.get()));
    return {};
  } catch (const py::Error& error) {
    return error.describe().type;
  }
}

// Opened by one thread, waited for by others. Waiting gives the GIL up where it is held.
class Gate {
 public:
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  bool wait(std::chrono::milliseconds deadline = dist_support::kDeadline) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, deadline, [&] { return open_; });
  }
  bool wait_without_gil() {
    const py::GilRelease released;
    return wait();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

}  // namespace interpreter
