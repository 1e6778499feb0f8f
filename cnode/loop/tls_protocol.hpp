// TlsProtocol: the life of one TLS connection, between a transport below and an application's
// protocol above.
//
//   unwrapped ──connection_made──▶ handshake ──▶ wrapped ──close() or the peer's farewell──▶
//   flushing ──▶ shutdown
//       ▲              │                            │                                           │ │
//       └── connection_lost, abort()
//       ───────────────┴───────────────────────────────────────────┴───────────┘
//
// Flushing sends and delivers what is still there; shutdown says farewell and waits, for a limited
// time, for the peer's. The limits on what is buffered are asyncio's: 256 KiB of ciphertext the
// application does not read, 512 KiB it wrote.
//
// Used on the loop's thread, under the GIL. Every verb may run code of the application, which may
// call any other verb before it returns; they throw py::Error.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "cnode/loop/tls_engine.hpp"

namespace loop {

class TlsProtocol {
 public:
  static constexpr Py_ssize_t kReceiveBuffer = 256 * 1024;

  enum class Stage : std::uint8_t { kUnwrapped, kHandshake, kWrapped, kFlushing, kShutdown };
  enum class Application : std::uint8_t { kInit, kMade, kEof, kLost };

  struct Options {  // borrowed; null is None
    PyObject* loop = nullptr;
    PyObject* application = nullptr;
    PyObject* context = nullptr;
    PyObject* waiter = nullptr;
    PyObject* server_hostname = nullptr;
    PyObject* handshake_timeout = nullptr;
    PyObject* shutdown_timeout = nullptr;
    bool server_side = false;
    bool call_connection_made = true;
  };

  // `self` is the Python object this is part of. Nothing but open() works before open().
  TlsProtocol(TlsState& state, PyObject* self) : state_(state), self_(self) {}
  TlsProtocol(const TlsProtocol&) = delete;
  TlsProtocol& operator=(const TlsProtocol&) = delete;
  void open(const Options& options);
  bool is_open() const { return engine_ != nullptr; }

  // What the transport below calls.
  void connection_made(PyObject* transport);
  void connection_lost(PyObject* error);
  py::Ref get_buffer();
  void buffer_updated(Py_ssize_t size);
  void feed(const char* data, std::size_t size);
  bool eof_received();  // true: the transport stays open
  void pause_writing() { sending_paused_ = true; }
  void resume_writing();

  // What the application's transport calls.
  void write(PyObject* data);
  void write_lines(PyObject* list);
  void close();
  void abort(PyObject* error);
  // Whether close() and abort() have nothing left to do.
  bool is_over() const { return over_ || stage_ == Stage::kUnwrapped; }
  void pause_reading() { reading_paused_ = true; }
  void resume_reading();
  bool reading_paused() const { return reading_paused_; }
  bool writing_paused() const { return writing_paused_; }
  bool transport_is_closing();
  py::Ref extra_info(PyObject* name, PyObject* otherwise);
  std::size_t write_buffer_size();
  std::size_t read_buffer_size() { return engine_->unread(); }
  void set_write_limits(PyObject* high, PyObject* low);
  void set_read_limits(PyObject* high, PyObject* low);
  struct Limits {
    std::size_t high = 0, low = 0;
  };
  const Limits& write_limits() const { return write_limits_; }
  const Limits& read_limits() const { return read_limits_; }

  // What the loop calls back.
  void check_handshake_timeout();
  void check_shutdown_timeout();
  void do_read();
  void resume();

  void set_application(PyObject* protocol);
  void fatal_error(PyObject* error, const char* message);
  void wake_waiter(PyObject* error);
  void queue_unsent(PyObject* data);  // as if it had been written and not taken
  // Other objects in the places of Python's own, before the connection is made.
  void replace_ssl_object(PyObject* object) { replace(ssl_object_, object); }
  void replace_incoming(PyObject* bio) { replace(incoming_, bio); }
  void replace_outgoing(PyObject* bio) { replace(outgoing_, bio); }

  TlsState& state() const { return state_; }
  bool is_direct() const { return direct_; }
  Stage stage() const { return stage_; }
  Application application_stage() const { return application_stage_; }
  long lost_writes() const { return lost_; }
  // Borrowed, null for None.
  PyObject* loop() const { return loop_.get(); }
  PyObject* application() const { return application_.get(); }
  PyObject* application_transport() const { return application_transport_.get(); }
  PyObject* transport() const { return transport_.get(); }
  PyObject* waiter() const { return waiter_.get(); }
  PyObject* context() const { return context_.get(); }
  PyObject* server_hostname() const { return server_hostname_.get(); }
  PyObject* extra() const { return extra_.get(); }
  PyObject* ssl_object() const { return ssl_object_.get(); }
  PyObject* incoming() const { return incoming_.get(); }
  PyObject* outgoing() const { return outgoing_.get(); }
  PyObject* handshake_timer() const { return handshake_timer_.get(); }
  PyObject* shutdown_timer() const { return shutdown_timer_.get(); }
  PyObject* handshake_timeout() const { return handshake_timeout_.get(); }
  PyObject* shutdown_timeout() const { return shutdown_timeout_.get(); }
  bool server_side() const { return server_side_; }
  std::size_t backlog_size() const { return backlog_size_; }

  int traverse(visitproc visit, void* arg);
  void clear();

 private:
  struct Piece {
    py::Ref bytes;
    std::size_t sent = 0;
  };

  void replace(py::Ref& place, PyObject* object);
  void set_stage(Stage stage);
  bool takes_writes() const { return stage_ == Stage::kHandshake || stage_ == Stage::kWrapped; }

  void start_handshake();
  void do_handshake();
  void handshake_complete(std::optional<py::Error> error);

  void start_shutdown();
  void do_flush();
  void do_shutdown();
  void shutdown_complete(std::optional<py::Error> error);
  void call_eof_received();

  void dispatch();
  void read_buffered(End& end);
  void read_copied(End& end);
  void deliver(PyObject* data);
  void reading_ended(End end);
  void control_reading();

  bool refuses_write();
  void send(const char* data, std::size_t size, PyObject* bytes);
  void queue(const char* data, std::size_t size);
  void queue(py::Ref bytes);
  void drain();
  bool drain_chunk();
  void put_out();
  void flush();
  void control_writing();
  void call_flow_control(PyObject* method, const char* message);
  template <typename Action>
  void or_fatal(Action action);

  bool debug();
  py::Ref call_later(PyObject* seconds, PyObject* method);
  void call_soon(PyObject* method);
  void cancel(py::Ref& timer);

  TlsState& state_;
  PyObject* self_;
  std::unique_ptr<TlsEngine> engine_;

  py::Ref loop_, application_, application_transport_, transport_, waiter_, context_;
  py::Ref server_hostname_, extra_, ssl_object_, incoming_, outgoing_;
  py::Ref get_buffer_, buffer_updated_;  // of the application; null unless it is a BufferedProtocol
  py::Ref handshake_timeout_, shutdown_timeout_, handshake_timer_, shutdown_timer_;
  py::Ref handshake_start_;  // loop.time(), in debug mode
  py::Ref receive_buffer_, receive_view_;

  std::deque<Piece> backlog_;  // written, not yet taken by the engine
  std::size_t backlog_size_ = 0;
  Limits write_limits_, read_limits_;
  long lost_ = 0;
  Stage stage_ = Stage::kUnwrapped;
  Application application_stage_ = Application::kInit;
  bool server_side_ = false;
  bool eof_received_ = false;
  bool sending_paused_ = false;    // by the transport
  bool writing_paused_ = false;    // the application's
  bool reading_paused_ = false;    // by the application
  bool receiving_paused_ = false;  // the transport's
  bool draining_ = false;
  bool over_ = false;    // the farewells are said
  bool direct_ = false;  // the engine calls OpenSSL itself
  bool native_ = false;  // the transport is one of ours
  bool stream_ = false;  // the application is asyncio's StreamReaderProtocol
};

// The Python object around one; `object` must be an SSLProtocol.
TlsProtocol& tls_of(PyObject* object);

// A new transport for the application of `protocol`, an SSLProtocol. Throws py::Error.
py::Ref new_tls_transport(TlsState& state, PyObject* loop, PyObject* protocol);
// So that its end goes without a warning.
void mark_closed(PyObject* transport);

int tls_protocol_exec(PyObject* module, TlsState& state);
int tls_transport_exec(PyObject* module, TlsState& state);

// Calls `action` and gives what it throws back to Python as `failure`.
template <typename Result, typename Action>
Result guarded(Result failure, Action action) {
  try {
    return action();
  } catch (py::Error& error) {
    std::move(error).restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return failure;
}

}  // namespace loop
