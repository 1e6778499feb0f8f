// The PROXY protocol, versions 1 (text) and 2 (binary): who the client is, told by a proxy before
// anything else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace web {

struct ProxyHeader {
  enum class State { kMore, kDone, kBad };
  State state = State::kMore;
  std::size_t used = 0;  // bytes of the header, when done
  bool known = false;    // false: LOCAL or UNKNOWN, the connection's own addresses count
  std::string client;
  std::uint16_t client_port = 0;
  std::string server;
  std::uint16_t server_port = 0;
};

inline constexpr std::size_t kMaxProxyHeader = 16 + 65535;

// Reads the header at the beginning of `bytes`; kMore if it is not whole yet.
ProxyHeader read_proxy_header(std::string_view bytes);

}  // namespace web
