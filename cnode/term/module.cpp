// A `_native` with nothing but the codec, for working on it without the rest of the node.
#include "cnode/py/python.hpp"
#include "cnode/term/codec.hpp"

namespace {

PyModuleDef_Slot slots[] = {
    {Py_mod_exec, reinterpret_cast<void*>(term::add_to_module)},
    {0, nullptr},
};
PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", nullptr, 0, nullptr, slots, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() { return PyModuleDef_Init(&definition); }
