// NativeAsking: what Python asks of Erlang (calls, requests, remote functions), from threads and
// from coroutines.
#pragma once

#include "cnode/py/ref.hpp"

namespace bridge {

struct Call;
class Runtime;

// Adds the functions and the type Question to the module. -1 with an exception set when it fails.
int add_asking(PyObject* module);

// For whom the call works: a Pid, or the name of the peer where the process is not told; null for
// work of the node's own. The value of the context variable SERVED in its coroutine.
py::Ref served_by(Runtime& runtime, const Call& call);

}  // namespace bridge
