// Lookup: what Python code of the node's own looks up on a peer's behalf, as a call of that peer
// would.
//
// The entry modules are parts of the package that call what a peer names: they may be called
// whatever the allow-list says, because they go by it themselves, by way of these functions.
#pragma once

#include <string_view>

#include "cnode/py/ref.hpp"

namespace bridge {

// Whether this is the plain, public name of a function in an entry module. Invoker checks that the
// function is one of that module's own.
bool is_entry(std::string_view module, std::string_view function);

// Both under the GIL; they throw py::Error, RuntimeError where no calls are run.
// Imports and looks up. Throws erlang.exceptions.NotAllowed where a call would be refused.
py::Ref look_up(std::string_view module, std::string_view function);
// Whether the allow-list has this name, which need not exist.
bool is_allowed(std::string_view module, std::string_view function);

}  // namespace bridge
