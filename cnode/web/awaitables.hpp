// What receive() and send() return: an awaitable that is done already, or one that waits on an
// exchange.
//
// Both pass for coroutines (send, throw, close), so that create_task(receive()) works.
#pragma once

#include "cnode/web/state.hpp"

namespace web {

int awaitables_exec(PyObject* module, State& state);

// Done, with this value.
py::Ref ready(State& state, py::Ref value);

enum class Wait { kReceive, kSend };

// Done when exchange_poll() says so, which is asked now and whenever the exchange wakes it.
py::Ref waiting(State& state, PyObject* exchange, Wait what);

}  // namespace web
