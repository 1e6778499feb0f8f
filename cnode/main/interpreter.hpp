// The embedded interpreter: started with the user's paths and virtual environment, ended if it
// still can be.
#pragma once

#include "cnode/main/config.hpp"

namespace node_main {

// Starts CPython and imports what the node needs and the user named. On return this thread holds
// the GIL. Throws ConfigError.
void start_interpreter(const Config& config);

}  // namespace node_main
