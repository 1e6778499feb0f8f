// The epmd client: keeps this node registered, and asks where others listen.
//
// A node is registered as long as its connection to epmd stays open. When epmd is not there yet, or
// goes away, the client comes back every two seconds for ever: its absence is a state to wait in,
// never a reason to stop.
#pragma once

#include <asio/awaitable.hpp>
#include <asio/ip/tcp.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "cnode/base/result.hpp"
#include "cnode/dist/epmd_protocol.hpp"

namespace dist {

struct EpmdAddress {
  std::string host = "127.0.0.1";
  std::uint16_t port = kEpmdPort;
};

class EpmdClient {
 public:
  EpmdClient(asio::any_io_executor executor, EpmdAddress address);

  // Called when nobody answers where epmd should be; true: no need for it any more.
  using Absent = std::function<bool()>;

  // Registers `alive` (the name before the '@') for `port`, again and again. `refused` is called
  // when epmd has had that name from somebody else for five seconds and the node was never
  // registered before.
  asio::awaitable<void> keep_registered(std::string alive, std::uint16_t port,
                                        std::function<void()> refused, Absent absent = {});
  void stop();

  bool registered() const { return registered_.load(std::memory_order_relaxed); }

  // The port `alive` listens on at `host`.
  static asio::awaitable<base::Result<std::uint16_t>> look_up(std::string host,
                                                              std::uint16_t epmd_port,
                                                              std::string alive);

 private:
  asio::awaitable<base::Status> register_once(const std::string& alive, std::uint16_t port);

  EpmdAddress address_;
  asio::ip::tcp::socket socket_;
  asio::steady_timer pause_;
  bool stopped_ = false;
  bool reached_ = false;  // by the last attempt
  std::atomic<bool> registered_{false};
};

// Connects to any address `host` resolves to, IPv4 or IPv6.
asio::awaitable<base::Status> connect(asio::ip::tcp::socket& socket, std::string host,
                                      std::uint16_t port, std::chrono::milliseconds deadline);

}  // namespace dist
