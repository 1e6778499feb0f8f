// The node's counters in Prometheus' text format.
#pragma once

#include <string>

namespace bridge {
class Runtime;
}

namespace node_main {

// Reactor thread, without the GIL. `version` is the program's.
std::string metrics_of(bridge::Runtime& runtime, const char* version, bool draining);

}  // namespace node_main
