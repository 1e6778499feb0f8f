// The module `erlang._native`: what Python sees of the node. The same code is built into the
// program and as an extension module.
#pragma once

#include "cnode/py/python.hpp"

PyMODINIT_FUNC PyInit__native();
