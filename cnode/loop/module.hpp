// The module `erlang_loop._core`: built in to the node, and an extension module for every other
// interpreter.
#pragma once

#include "cnode/py/python.hpp"

extern "C" PyObject* PyInit__core();
