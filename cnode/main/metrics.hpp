// The node's counters in Prometheus' text format.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cnode/main/web_server.hpp"

namespace bridge {
class Runtime;
}

namespace node_main {

// What the runtime does not know of itself.
struct ProgramState {
  std::string version;
  bool draining = false;
  std::optional<std::int64_t> certificate_expiry;  // seconds since 1970; none without a certificate
  std::optional<WebServer::Counters> web;          // where there is a web server
};

// Reactor thread, without the GIL.
std::string metrics_of(bridge::Runtime& runtime, const ProgramState& program);

}  // namespace node_main
