// Connection: the asyncio protocol of one client: requests in, answers out, one after the other; or
// a WebSocket.
//
//   transport ── bytes ──▶ RequestParser ──▶ HttpExchange ──▶ application
//        ▲                 Frames ─────────▶ SocketExchange ─┘
//        └─────────────────── write() ◀──────────┘
//
// Reading stops while a pipelined request waits for its turn, while the application leaves a body
// or messages lying, and while the client does not read what we write.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "cnode/web/exchange.hpp"
#include "cnode/web/frames.hpp"
#include "cnode/web/request_parser.hpp"
#include "cnode/web/service.hpp"

namespace web {

class Connection final : public RequestParser::Sink {
 public:
  Connection(Service& service, PyObject* service_object, PyObject* object);
  ~Connection();

  // What asyncio calls.
  void made(PyObject* transport);
  void lost();
  void received(std::string_view bytes);
  void pause_writing();
  void resume_writing();

  Service& service() const { return service_; }
  bool writing_paused() const { return writing_paused_; }
  bool is_lost() const { return lost_; }
  Frames* frames() { return frames_.get(); }

  // For the exchange. What is written to a connection that is gone is dropped.
  void write(std::string_view bytes);
  void write(std::string_view head, PyObject* body);  // a bytes object
  void body_taken();  // the application has taken what there was: more may come
  void answered(bool keep);
  void open_frames(const std::optional<DeflateTerms>& deflate, Frames::Sink& sink);
  void flush_frames();
  void close_socket();                                    // after the last frame
  void refuse_socket(int status, std::string_view text);  // in place of the handshake's answer
  // For the access log. `code`: with which a WebSocket was closed.
  void log_access(int status, std::uint64_t sent, std::optional<std::uint16_t> code = {});
  void cut();
  const std::string& method() const { return method_; }

  // From the service.
  void check(double now);
  void drain();
  void abort();

  // RequestParser::Sink
  bool on_head(const RequestParser::Head& head) override;
  bool on_body(std::string_view bytes) override;
  bool on_end() override;

  int traverse(visitproc visit, void* arg);
  void clear();
  py::Ref release_service() { return py::Ref::steal(std::exchange(service_object_, nullptr)); }

 private:
  void feed(std::string_view bytes);
  void feed_frames(std::string_view bytes);
  std::string_view take_proxy_header(std::string_view bytes);
  void refuse(int status, std::string_view reason);
  void close();
  void linger();
  void update_reading();
  void begin_request(const RequestParser::Head& head);
  bool can_write();
  void write_refusal(int status, std::string_view reason);
  template <typename Action>
  void guard(Action action);
  [[noreturn]] void throw_error();
  void addresses();
  HttpExchange* http() const;
  SocketExchange* socket() const;
  void end_exchange();
  void log_socket();
  void next_request();

  Service& service_;
  PyObject* service_object_;
  PyObject* object_;  // whose part we are
  PyObject* transport_ = nullptr;
  PyObject* exchange_ = nullptr;  // the current one
  PyObject* context_ = nullptr;   // in which every application is started
  PyObject* client_ = nullptr;    // (host, port) or None
  PyObject* server_ = nullptr;
  std::string client_text_;
  RequestParser parser_;
  std::unique_ptr<Frames> frames_;
  bool is_socket_ = false;  // what exchange_ is
  std::string pending_;     // bytes behind the current request, or the beginning of a PROXY header
  std::string method_, target_;
  unsigned minor_ = 1;  // of the version of the current request
  double began_ = 0;    // of the current request
  double since_ = 0;    // of the present state of affairs: idle, in a head, discarding, closing
  double last_bytes_ = 0;
  double stalled_since_ = 0;
  long long unsent_ = 0;
  bool awaits_proxy_ = false;
  bool keep_ = true;         // this connection, after the current answer
  bool fresh_ = true;        // no request yet
  bool answering_ = false;   // a request's answer is not complete
  bool discarding_ = false;  // the answer is complete, the body of its request is not
  std::size_t discarded_ = 0;
  bool request_done_ = true;
  bool reading_paused_ = false;
  bool writing_paused_ = false;
  bool closing_ = false;
  bool lingering_ = false;  // closing_, and what comes is read and dropped
  bool lost_ = false;
  bool pinged_ = false;
  bool feeding_ = false;
  std::string behind_proxy_;          // what followed the PROXY header
  int refusal_ = 0;                   // a status: the request that just began gets it
  std::unique_ptr<py::Error> error_;  // raised under llhttp, which is C
};

int connection_exec(PyObject* module, State& state);
Connection& connection_of(PyObject* object);
py::Ref new_connection(State& state, Service& service, PyObject* service_object);

}  // namespace web
