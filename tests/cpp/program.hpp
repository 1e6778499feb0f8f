// A whole node in this process, its reactor on a thread of its own, for tests against raw peers.
#pragma once

#include "tests/cpp/interpreter.hpp"

#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>

#include "cnode/bridge/runtime.hpp"
#include "tests/cpp/node_support.hpp"

namespace program {

using namespace node_support;

class Program {
 public:
  explicit Program(std::size_t workers = 4) {
    interpreter::start();
    spdlog::set_level(spdlog::level::off);
    bridge::RuntimeConfig config;
    config.node = config_of("node@127.0.0.1");
    config.pool.workers = workers;
    config.pool.grace = 2s;
    {
      const py::GilGuard gil;
      runtime = std::make_unique<bridge::Runtime>(context_, std::move(config));
    }
    runtime->start([](const std::string&) {});
    thread_ = std::thread([this] { context_.run(); });
  }
  ~Program() {
    runtime->stop();
    context_.stop();
    thread_.join();
    const py::GilGuard gil;
    runtime.reset();
  }
  // A peer that has yet to read the greeting.
  Peer connect_new(const std::string& name = "peer@127.0.0.1") {
    return {connect_to(runtime->node().port()), {.name = name}};
  }
  Peer connect(const std::string& name = "peer@127.0.0.1") {
    Peer peer = connect_new(name);
    peer.receive();  // the greeting to py_callback
    return peer;
  }
  void run(std::function<void()> what) {
    std::promise<void> done;
    asio::post(context_, [&] {
      what();
      done.set_value();
    });
    done.get_future().get();
  }

 private:
  asio::io_context context_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_ =
      asio::make_work_guard(context_);
  std::thread thread_;

 public:
  std::unique_ptr<bridge::Runtime> runtime;
};

template <class Append>
Bytes encoded(Append append) {
  return Peer::control(append);
}

}  // namespace program
