// NativeAsking: what Python asks of Erlang (calls, requests, remote functions), from threads and
// from coroutines.
#pragma once

#include <string>

#include "cnode/py/ref.hpp"

namespace bridge {

struct Call;
class Front;
class Runtime;

// Adds the functions and the type Question to the module. -1 with an exception set when it fails.
int add_asking(PyObject* module);

// Says for whom a call's coroutine works: the value of the context variable SERVED in it, whose end
// is the call's. Null for work of the node's own.
py::Ref mark_served(Call& call);

// In a worker process: erlang.send, and what the node knows: its name, its peers, a process's pid.
py::Ref send_through(Front& front, PyObject* dest, PyObject* term);
py::Ref tell_of(Front& front, const char* what, const std::string& argument = {});

}  // namespace bridge
