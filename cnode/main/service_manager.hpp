// ServiceManager: tells systemd how we are, by the protocol of sd_notify(3): datagrams of
// "NAME=VALUE" lines to the socket $NOTIFY_SOCKET names. Without that variable it does nothing.
//
// The watchdog is fed by the reactor, which is what has to be alive; Python's state is the business
// of /readyz.
#pragma once

#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>

#include <chrono>
#include <functional>
#include <string>

namespace node_main {

class ServiceManager {
 public:
  // Reads and clears NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID: children of Python code must
  // not speak for us. Before there is another thread.
  explicit ServiceManager(asio::io_context& reactor);
  ~ServiceManager();
  ServiceManager(const ServiceManager&) = delete;
  ServiceManager& operator=(const ServiceManager&) = delete;

  // Says READY=1 as soon as `ready` does, and feeds the watchdog from then on. Reactor, or before
  // it runs.
  void start(std::function<bool()> ready);
  void stopping();

 private:
  void look();
  void feed();
  void say(const std::string& text) const;

  int socket_ = -1;
  std::string path_;
  std::chrono::microseconds watchdog_{0};
  std::function<bool()> ready_;
  asio::steady_timer timer_;
};

}  // namespace node_main
