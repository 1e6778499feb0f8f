// Admin: what an operator's machinery asks over HTTP, on a port of its own, and read only.
//
//   GET /livez      the reactor turns
//   GET /startupz   settings, Python and listener are there
//   GET /readyz     peers reach us, Python answers, nobody told us to stop; else 503 and why
//   GET /metrics    Prometheus' text format
//
// All of it runs on the reactor and none of it takes the GIL. Python is asked on its loop's thread
// and waited for half a second: who keeps the GIL makes the node not ready, never dead.
#pragma once

#include <asio/awaitable.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/steady_timer.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace node_main {

class Admin : public std::enable_shared_from_this<Admin> {
 public:
  struct Hooks {
    std::function<std::vector<std::string>()> not_ready;    // reactor: why not; Python aside
    std::function<void(std::function<void()>)> ask_python;  // calls back from Python's loop
    std::function<std::string()> metrics;                   // reactor
  };
  struct Address {
    std::string host;
    std::uint16_t port = 0;  // 0: any
  };

  // "HOST:PORT", "[HOST]:PORT" or "PORT", which is on the loopback. Throws ConfigError.
  static Address address_of(const std::string& text);

  Admin(asio::io_context& reactor, Hooks hooks);

  // Binds and accepts; the port. Throws ConfigError.
  std::uint16_t start(const Address& address);

 private:
  struct Answer {
    int code = 200;
    std::string body;
    const char* type = "text/plain; charset=utf-8";
  };
  using Socket = asio::ip::tcp::socket;

  asio::awaitable<void> accept_loop();
  asio::awaitable<void> serve(std::shared_ptr<Socket> held);
  asio::awaitable<Answer> answer(std::string_view head);
  static std::string response(const Answer& answer, bool with_body);
  asio::awaitable<Answer> readiness();
  asio::awaitable<bool> python_answers();

  asio::io_context& reactor_;
  Hooks hooks_;
  asio::ip::tcp::acceptor acceptor_;
  std::size_t open_ = 0;
  bool asked_ = false;  // Python has not answered yet
  std::vector<std::shared_ptr<asio::steady_timer>> waiting_;
};

}  // namespace node_main
