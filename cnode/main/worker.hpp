// A worker process: this program again, started by the node to run calls (bridge::ProcessPool).
//
// It reads its settings from the socket it was given, starts Python, and serves until it is told to
// stop or the node is gone. It knows no cookie, and signals for the node's group leave it alone:
// the node drains first.
#pragma once

#include "cnode/main/program.hpp"

namespace node_main {

// The exit code. Throws ConfigError.
int run_worker_process(Python python);

}  // namespace node_main
