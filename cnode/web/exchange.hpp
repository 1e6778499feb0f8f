// Exchange: one request and its answer, or one WebSocket, as the application has it: receive() and
// send().
//
//   connection ── body, frames, the end ──▶ Exchange ◀── receive() ── application, an asyncio task
//   connection ◀── head, body, frames ───── Exchange ◀── send() ────┘
//
// Under the GIL, on the loop's thread.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cnode/web/awaitables.hpp"
#include "cnode/web/frames.hpp"
#include "cnode/web/state.hpp"

namespace web {

class Connection;

class Exchange {
 public:
  Exchange(Connection& connection, PyObject* connection_object);
  virtual ~Exchange() = default;
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // What the application calls. The result is an awaitable.
  py::Ref receive();
  virtual py::Ref send(PyObject* message) = 0;

  // For the awaitables: the value, or null if it has to wait; then wait() is a future that is done
  // when it is worth asking again.
  virtual py::Ref poll(Wait what) = 0;
  py::Ref wait(Wait what);

  // Calls the application, whose task answers to us.
  void start(PyObject* application, const py::Ref& scope, const py::Ref& context);
  void task_done(PyObject* task);

  // From the connection.
  virtual void disconnected();
  void writable() { wake(Wait::kSend); }
  bool receiving() const { return !waiters_[0].empty(); }
  bool is_gone() const { return gone_; }

  PyObject* object() const { return object_; }
  void set_object(PyObject* object) { object_ = object; }  // whose part we are: no reference
  virtual int traverse(visitproc visit, void* arg);
  virtual void clear();

 protected:
  State& state() const;
  // The application has ended without an exception, or with one.
  virtual void ended() = 0;
  virtual void failed() = 0;
  void wake(Wait what);
  py::Ref may_write();  // an awaitable, after something was written
  void log_failure(PyObject* exception);
  Connection& connection() const;
  [[noreturn]] void raise_gone() const;

  bool gone_ = false;  // the client is

 private:
  Connection& connection_;
  PyObject* connection_object_;
  PyObject* object_ = nullptr;
  PyObject* task_ = nullptr;
  std::vector<PyObject*> waiters_[2];
};

class HttpExchange final : public Exchange {
 public:
  struct Request {
    bool head = false;  // the method is HEAD
    unsigned minor = 1;
    bool keep_alive = true;
    bool expects_continue = false;
  };

  HttpExchange(Connection& connection, PyObject* connection_object, const Request& request)
      : Exchange(connection, connection_object), request_(request) {}

  py::Ref send(PyObject* message) override;
  py::Ref poll(Wait what) override;

  void add_body(std::string_view bytes);
  // The connection should read no more until the application has taken what there is.
  bool is_full() const;
  void end_body();
  bool body_complete() const { return body_complete_; }
  bool head_sent() const { return head_sent_; }
  // The client waits to be told that it may send the body, and was not.
  bool body_never_sent() const {
    return request_.expects_continue && !continued_ && !body_complete_;
  }
  // Answers in the application's stead, if it is not too late.
  bool answer(int status, std::string_view text);

 private:
  enum class Framing { kNone, kLength, kChunked, kToEnd };

  void ended() override;
  void failed() override;
  void begin(PyObject* message);
  void add_header(std::string_view name, std::string_view value);
  void finish_head(std::optional<std::size_t> whole_body);
  py::Ref body(PyObject* message);
  void write_body(PyObject* body, std::string_view bytes, bool more);
  void finish();

  const Request request_;
  std::string body_;
  bool body_complete_ = false;
  bool end_given_ = false;  // the application knows that the body is complete
  bool continued_ = false;

  bool started_ = false;
  bool head_sent_ = false;
  bool complete_ = false;
  bool close_ = false;  // after this answer
  bool has_date_ = false;
  bool has_server_ = false;
  bool has_connection_ = false;
  int status_ = 0;
  std::string head_;
  Framing framing_ = Framing::kNone;
  std::optional<std::uint64_t> length_;
  std::uint64_t sent_ = 0;
};

class SocketExchange final : public Exchange, public Frames::Sink {
 public:
  struct Request {
    std::string key;
    std::string extensions;
  };

  SocketExchange(Connection& connection, PyObject* connection_object, Request request)
      : Exchange(connection, connection_object), request_(std::move(request)) {}

  py::Ref send(PyObject* message) override;
  py::Ref poll(Wait what) override;
  void disconnected() override;
  int traverse(visitproc visit, void* arg) override;
  void clear() override;

  // Frames::Sink
  void on_message(Frames::Kind kind, std::string_view bytes) override;
  void on_close(std::uint16_t code, std::string_view reason) override;

  // Bytes that wait for the application: beyond a bound the connection reads no more.
  std::size_t waiting_bytes() const { return waiting_bytes_; }
  bool accepted() const { return stage_ == Stage::kOpen; }
  // The server stops.
  void close(std::uint16_t code);
  // For the access log: what the handshake was answered with (0: nothing), the bytes of messages or
  // of the refusal, and the close code that came first from either side.
  int status() const { return status_; }
  std::uint64_t sent() const { return sent_; }
  std::optional<std::uint16_t> close_code() const { return close_code_; }

 private:
  enum class Stage { kConnecting, kOpen, kDenying, kClosed };
  struct Message {
    PyObject* value;
    std::size_t size;
  };

  void ended() override;
  void failed() override;
  void accept(PyObject* message);
  void refuse(int status, std::string_view text);
  void closed_with(std::uint16_t code);
  void add_message(Frames::Kind kind, std::string_view bytes);
  void deny_begin(PyObject* message);
  void deny_body(PyObject* message);
  void send_message(PyObject* message);
  void close_by(PyObject* message);
  void push_disconnect(std::uint16_t code, std::string_view reason);
  void disconnected_by_us(std::uint16_t code);

  const Request request_;
  Stage stage_ = Stage::kConnecting;
  bool connect_given_ = false;
  bool disconnect_told_ = false;
  std::deque<Message> messages_;
  std::size_t waiting_bytes_ = 0;
  int status_ = 0;
  std::uint64_t sent_ = 0;
  std::optional<std::uint16_t> close_code_;
  int denial_status_ = 0;
  std::string denial_;  // its head, then its body
  std::string denial_body_;
};

int exchange_exec(PyObject* module, State& state);
Exchange& exchange_of(PyObject* object);
// The Python object of an exchange, which it takes over.
py::Ref new_exchange(State& state, std::unique_ptr<Exchange> exchange);

}  // namespace web
