// Service: what the connections of one server share: applications, limits, counters, and the sweep
// that cuts off who is late.
//
// Under the GIL, on the loop's thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "cnode/web/request_parser.hpp"
#include "cnode/web/state.hpp"

namespace web {

class Connection;

class Service {
 public:
  struct Limits {
    RequestParser::Limits request;
    std::size_t message = 16 * 1024 * 1024;            // of a WebSocket
    double head = 10, idle = 5, body = 30, ping = 20;  // seconds
  };
  struct Application {
    std::string prefix;  // "" or "/x": no slash at its end
    PyObject* callable = nullptr;
    PyObject* state = nullptr;  // of its lifespan; null if it has none
    PyObject* root_path = nullptr;
  };
  struct Counters {
    std::uint64_t requests_total = 0, refused_total = 0, bytes_in = 0, bytes_out = 0;
    std::uint64_t requests = 0, websockets = 0;  // now
  };

  Service(State& state, PyObject* object) : state_(state), object_(object) {}
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  // From the arguments of Service(…). Throws py::Error.
  void open(PyObject* arguments, PyObject* keywords);

  State& state() { return state_; }
  PyObject* loop() const { return loop_; }
  PyObject* access() const { return access_; }
  PyObject* scheme() const { return scheme_; }
  PyObject* websocket_scheme() const { return websocket_scheme_; }
  const Limits& limits() const { return limits_; }
  bool compress() const { return compress_; }
  bool proxy_protocol() const { return proxy_protocol_; }
  bool draining() const { return draining_; }
  Counters& counters() { return counters_; }

  // Whose prefix the path begins with; null if there is none.
  const Application* application_for(std::string_view path) const;

  // Lines of every head: what the application did not say itself.
  std::string_view server_line() const { return server_line_; }
  std::string_view date_line();

  // One buffer for the reads of all connections: what is in it counts until the next read.
  PyObject* view();  // borrowed
  const char* buffer() const { return PyByteArray_AS_STRING(buffer_); }
  static constexpr Py_ssize_t kBuffer = 256 * 1024;

  static double now();  // seconds of the monotonic clock, to some milliseconds

  void add(Connection& connection) { connections_.insert(&connection); }
  void remove(Connection& connection) { connections_.erase(&connection); }

  void sweep();
  void drain();
  void abort();
  py::Ref stats() const;

  int traverse(visitproc visit, void* arg);
  void clear();

 private:
  template <typename Action>
  void each(Action action);

  State& state_;
  PyObject* object_;  // whose part we are
  PyObject* loop_ = nullptr;
  PyObject* access_ = nullptr;
  PyObject* scheme_ = nullptr;
  PyObject* websocket_scheme_ = nullptr;
  PyObject* buffer_ = nullptr;
  PyObject* view_ = nullptr;
  std::vector<Application> applications_;  // the longest prefix first
  Limits limits_;
  bool compress_ = true;
  bool proxy_protocol_ = false;
  bool draining_ = false;
  std::string server_line_;
  std::string date_line_;
  std::int64_t date_second_ = 0;
  Counters counters_;
  std::unordered_set<Connection*> connections_;
};

int service_exec(PyObject* module, State& state);
Service& service_of(PyObject* object);

}  // namespace web
