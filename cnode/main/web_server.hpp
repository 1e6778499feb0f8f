// WebServer: erlang_web's server on the node's loop, for the program: `sidewinder serve`.
//
//   reactor ── start, stop ──▶ the loop's inbox ──▶ erlang_web._serve.Program ── told ──▶ reactor
//
// It starts when the reactor runs already, as what an application does at its start may need peers.
#pragma once

#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "cnode/main/config.hpp"
#include "cnode/py/ref.hpp"

namespace node_main {

class WebServer {
 public:
  struct Hooks {
    std::function<void(std::string)> failed;  // with one line that names the setting
  };
  struct Counters {
    std::uint64_t connections = 0;
    std::uint64_t requests = 0;
    std::uint64_t websockets = 0;
    std::uint64_t requests_total = 0;
    std::uint64_t refused_total = 0;
    std::uint64_t bytes_in_total = 0;
    std::uint64_t bytes_out_total = 0;
  };

  // The hooks run on the reactor. The runtime outlives this.
  WebServer(asio::io_context& reactor, bridge::Runtime& runtime, WebConfig config, Hooks hooks);
  ~WebServer();  // under the GIL
  WebServer(const WebServer&) = delete;
  WebServer& operator=(const WebServer&) = delete;

  void start();  // any thread; the loop has to run
  // Reactor: accepts nobody any more, lets requests end, then calls `done`: when the applications
  // have ended, or a moment after the time is over, which who blocks the loop cannot prevent.
  void stop(std::chrono::milliseconds limit, std::function<void()> done);

  bool serving() const { return serving_; }       // reactor
  Counters counters() const { return counted_; }  // reactor; of the last second
  // After stop(): whether no thread is in an application any more; whether one keeps the loop.
  bool clean() const { return clean_; }
  bool blocked() const { return blocked_; }

 private:
  py::Ref options() const;  // under the GIL, on the loop's thread, as the next three
  void make_program();
  static PyObject* told(PyObject* self, PyObject* arguments);
  void hear(const std::string& what, PyObject* value);

  void stopped();

  asio::io_context& reactor_;
  bridge::Runtime& runtime_;
  const WebConfig config_;
  const Hooks hooks_;
  py::Ref program_;  // under the GIL
  std::atomic<bool> stopping_{false};
  // Reactor.
  bool serving_ = false;
  bool clean_ = true;
  bool blocked_ = false;
  Counters counted_;
  asio::steady_timer limit_;
  std::function<void()> done_;
};

}  // namespace node_main
