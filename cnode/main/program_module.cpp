// The module `sidewinder._program`: the node for an interpreter that runs already, which is how
// `python -m sidewinder` does it. `erlang._native`, `erlang_loop._core` and `erlang_web._http` are
// in this shared object, too, since node, codec and loop have to be of one piece
// (python/sidewinder/__main__.py puts them where they are looked for).
#include "cnode/py/python.hpp"

#include <cstdio>
#include <string>
#include <vector>

#include "cnode/bridge/native_module.hpp"
#include "cnode/loop/module.hpp"
#include "cnode/main/program.hpp"
#include "cnode/py/error.hpp"
#include "cnode/web/module.hpp"

namespace {

std::vector<std::string> strings(PyObject* list) {
  py::Ref sequence = py::check(PySequence_Fast(list, "a list of arguments is needed"));
  std::vector<std::string> found;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(sequence.get()); ++i) {
    PyObject* bytes = nullptr;
    if (PyUnicode_FSConverter(PySequence_Fast_GET_ITEM(sequence.get(), i), &bytes) == 0)
      py::throw_fetched();
    const py::Ref owned = py::Ref::steal(bytes);
    found.emplace_back(PyBytes_AS_STRING(bytes));
  }
  return found;
}

PyObject* run(PyObject*, PyObject* list) {
  try {
    std::vector<std::string> arguments = strings(list);
    std::vector<char*> argv;
    for (auto& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const int code = node_main::program(static_cast<int>(arguments.size()), argv.data(),
                                        node_main::Python::kRunning);
    std::fflush(nullptr);
    return PyLong_FromLong(code);
  } catch (py::Error& error) {
    std::move(error).restore();
    return nullptr;
  }
}

PyMethodDef methods[] = {
    {"run", run, METH_O, "run(argv) -> int: the node, from its command line to its exit code."},
    {nullptr, nullptr, 0, nullptr},
};

// The other two modules of this shared object are found in it by name.
[[maybe_unused]] PyObject* (*const others[])() = {PyInit__native, PyInit__core, PyInit__http};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_program",
                          "The node, in the interpreter that runs.",
                          0,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__program() { return PyModuleDef_Init(&definition); }
