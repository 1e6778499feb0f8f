// The interpreter: our own, started with the user's paths and virtual environment, or the one that
// runs us.
#pragma once

#include <string>

#include "cnode/main/config.hpp"

namespace node_main {

// Starts CPython and imports what the node needs and the user named. On return this thread holds
// the GIL. Throws ConfigError.
void start_interpreter(const Config& config);

// The same in an interpreter that runs; this thread holds the GIL. Throws ConfigError.
void join_interpreter(const Config& config);

// The file of the interpreter that runs: what starts it again.
std::string python_program();

// What is no longer in the environment leaves os.environ, too, which is a copy made at Python's
// start.
void forget_environment();

}  // namespace node_main
