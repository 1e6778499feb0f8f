// The module `erlang_web._http`: an HTTP/1.1 and WebSocket server for ASGI applications, for any
// asyncio loop. Built in to the node, and an extension module for every other interpreter.
#pragma once

#include "cnode/py/python.hpp"

extern "C" PyObject* PyInit__http();

namespace web {

// The name under which a program that has the module linked in offers it: built-in modules have no
// packages.
inline constexpr const char* kBuiltIn = "_sidewinder_web";

}  // namespace web
