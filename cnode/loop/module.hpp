// The module `erlang_loop._core`: built in to the node, and an extension module for every other
// interpreter.
#pragma once

#include "cnode/py/python.hpp"

extern "C" PyObject* PyInit__core();

namespace loop {

// The name under which a program that has the module linked in offers it: built-in modules have no
// packages.
inline constexpr const char* kBuiltIn = "_sidewinder_loop";

}  // namespace loop
