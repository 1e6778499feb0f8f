// The node from its command line to its exit code, the same for the program, which has an
// interpreter of its own, and for `python -m sidewinder`, which runs in the user's.
#pragma once

namespace node_main {

enum class Python {
  kOurs,     // started here, and ended at the end
  kRunning,  // started by whoever calls, who holds the GIL and ends it
};

// The exit code.
int program(int argc, char** argv, Python python);

}  // namespace node_main
