#include "cnode/loop/tls_protocol.hpp"

#include <algorithm>
#include <array>
#include <new>

namespace loop {
namespace {

constexpr const char* kFatal = "Fatal error on SSL protocol";
constexpr std::size_t kGather = 16 * 1024;  // pieces smaller than a record share one
constexpr std::size_t kChunk = 256 * 1024;  // written at most before it is handed to the transport
constexpr long kLostWritesToWarn = 5;       // asyncio.constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES

py::Ref same(const py::Ref& other) { return py::Ref::borrow(other.get()); }

bool is_true(PyObject* object) {
  const int truth = PyObject_IsTrue(object);
  py::check_status(truth);
  return truth != 0;
}

// The bytes of anything with a buffer, for a scope.
class BufferView {
 public:
  BufferView(PyObject* object, int flags) {
    py::check_status(PyObject_GetBuffer(object, &view_, flags));
  }
  ~BufferView() { PyBuffer_Release(&view_); }
  BufferView(const BufferView&) = delete;
  BufferView& operator=(const BufferView&) = delete;
  char* data() const { return static_cast<char*>(view_.buf); }
  std::size_t size() const { return static_cast<std::size_t>(view_.len); }

 private:
  Py_buffer view_;
};

py::Ref positive(PyObject* seconds, const TlsState& state, PyObject* constant, const char* name) {
  if (seconds == nullptr) return py::check(PyObject_GetAttr(state.constants, constant));
  const py::Ref zero = py::check(PyLong_FromLong(0));
  const int refused = PyObject_RichCompareBool(seconds, zero.get(), Py_LE);
  py::check_status(refused);
  if (refused == 0) return py::Ref::borrow(seconds);
  PyErr_Format(PyExc_ValueError, "%s should be a positive number, got %S", name, seconds);
  py::throw_fetched();
}

Py_ssize_t limit_of(PyObject* number) {
  const py::Ref whole = py::check(PyNumber_Long(number));
  const Py_ssize_t limit = PyNumber_AsSsize_t(whole.get(), nullptr);  // clipped, not refused
  if (limit == -1 && PyErr_Occurred() != nullptr) py::throw_fetched();
  return limit;
}

// What is not given follows from the other, as asyncio has it.
TlsProtocol::Limits limits_of(PyObject* high, PyObject* low, Py_ssize_t usual) {
  Py_ssize_t upper = high == nullptr ? usual : limit_of(high);
  Py_ssize_t lower = low == nullptr ? upper / 4 : limit_of(low);
  if (high == nullptr && low != nullptr)
    upper = lower > PY_SSIZE_T_MAX / 4 ? PY_SSIZE_T_MAX : 4 * lower;
  if (upper < lower || lower < 0) {
    PyErr_Format(PyExc_ValueError, "high (%zd) must be >= low (%zd) must be >= 0", upper, lower);
    py::throw_fetched();
  }
  return {static_cast<std::size_t>(upper), static_cast<std::size_t>(lower)};
}

constexpr Py_ssize_t kWriteHigh = 512 * 1024;  // FLOW_CONTROL_HIGH_WATER_SSL_WRITE
constexpr Py_ssize_t kReadHigh = 256 * 1024;   // FLOW_CONTROL_HIGH_WATER_SSL_READ

bool must_leave_loop(const py::Error& error) {
  return error.matches(PyExc_KeyboardInterrupt) || error.matches(PyExc_SystemExit);
}

}  // namespace

// --- beginnings

void TlsProtocol::open(const Options& options) {
  if (state_.memory_bio == nullptr)
    py::raise(PyExc_RuntimeError, "stdlib ssl module not available");
  handshake_timeout_ = positive(options.handshake_timeout, state_,
                                state_.names.SSL_HANDSHAKE_TIMEOUT, "ssl_handshake_timeout");
  shutdown_timeout_ = positive(options.shutdown_timeout, state_, state_.names.SSL_SHUTDOWN_TIMEOUT,
                               "ssl_shutdown_timeout");
  server_side_ = options.server_side;
  PyObject* hostname = options.server_hostname;
  if (options.context != nullptr && is_true(options.context)) {
    context_ = py::Ref::borrow(options.context);
  } else {
    context_ = py::check(PyObject_CallFunctionObjArgs(state_.create_context,
                                                      server_side_ ? Py_True : Py_False,
                                                      hostname ? hostname : Py_None, nullptr));
  }
  if (hostname != nullptr && !server_side_ && is_true(hostname))
    server_hostname_ = py::Ref::borrow(hostname);
  extra_ = py::check(PyDict_New());
  py::check_status(PyDict_SetItem(extra_.get(), state_.names.sslcontext, context_.get()));
  waiter_ = py::Ref::borrow(options.waiter);
  loop_ = py::Ref::borrow(options.loop);
  set_application(options.application);
  if (!options.call_connection_made) application_stage_ = Application::kMade;
  write_limits_ = limits_of(nullptr, nullptr, kWriteHigh);
  read_limits_ = limits_of(nullptr, nullptr, kReadHigh);
  TlsConnection made = connect_tls(state_, context_.get(), server_side_,
                                   server_hostname_ ? server_hostname_.get() : Py_None);
  incoming_ = std::move(made.incoming);
  outgoing_ = std::move(made.outgoing);
  ssl_object_ = std::move(made.ssl_object);
  application_transport_ = new_tls_transport(state_, loop_.get(), self_);
  engine_ = std::move(made.engine);
  direct_ = made.direct;
}

void TlsProtocol::replace(py::Ref& place, PyObject* object) {
  if (stage_ != Stage::kUnwrapped) py::raise(PyExc_RuntimeError, "the TLS connection has begun");
  place = py::Ref::borrow(object);
  engine_ = python_engine(state_, ssl_object_.get(), incoming_.get(), outgoing_.get());
  direct_ = false;
}

void TlsProtocol::set_application(PyObject* protocol) {
  py::Ref get_buffer, buffer_updated;
  const int buffered = PyObject_IsInstance(protocol, state_.buffered_protocol);
  py::check_status(buffered);
  if (buffered != 0) {
    get_buffer = py::check(PyObject_GetAttr(protocol, state_.names.get_buffer));
    buffer_updated = py::check(PyObject_GetAttr(protocol, state_.names.buffer_updated));
  }
  stream_ = is_stream_protocol(*state_.stream_reader, protocol);
  application_ = py::Ref::borrow(protocol);
  get_buffer_ = std::move(get_buffer);
  buffer_updated_ = std::move(buffer_updated);
}

bool TlsProtocol::debug() {
  return is_true(call_method(loop_.get(), state_.names.get_debug).get());
}

py::Ref TlsProtocol::call_later(PyObject* seconds, PyObject* method) {
  const py::Ref weak = py::check(PyWeakref_NewRef(self_, nullptr));
  return call_method(loop_.get(), state_.names.call_later, seconds, state_.call_weakly, weak.get(),
                     method);
}

void TlsProtocol::call_soon(PyObject* method) {
  const py::Ref callback = py::check(PyObject_GetAttr(self_, method));
  call_method(loop_.get(), state_.names.call_soon, callback.get());
}

void TlsProtocol::cancel(py::Ref& timer) {
  const py::Ref cancelled = std::move(timer);
  if (cancelled) call_method(cancelled.get(), state_.names.cancel);
}

void TlsProtocol::set_stage(Stage stage) {
  const bool next = static_cast<int>(stage) == static_cast<int>(stage_) + 1;
  if (stage != Stage::kUnwrapped && !next) {
    PyErr_Format(PyExc_RuntimeError, "cannot switch state from %S to %S",
                 PyTuple_GET_ITEM(state_.protocol_states, static_cast<int>(stage_)),
                 PyTuple_GET_ITEM(state_.protocol_states, static_cast<int>(stage)));
    py::throw_fetched();
  }
  stage_ = stage;
}

void TlsProtocol::wake_waiter(PyObject* error) {
  if (!waiter_) return;
  const py::Ref waiter = same(waiter_);
  if (!is_true(call_method(waiter.get(), state_.names.cancelled).get())) {
    if (error != nullptr) {
      call_method(waiter.get(), state_.names.set_exception, error);
    } else {
      call_method(waiter.get(), state_.names.set_result, Py_None);
    }
  }
  waiter_.reset();
}

// --- what the transport below calls

void TlsProtocol::connection_made(PyObject* transport) {
  transport_ = py::Ref::borrow(transport);
  native_ = state_.native_transport != nullptr && Py_IS_TYPE(transport, state_.native_transport);
  start_handshake();
}

void TlsProtocol::connection_lost(PyObject* error) {
  backlog_.clear();
  backlog_size_ = 0;
  engine_->drop_unsent();
  ++lost_;
  if (application_transport_) mark_closed(application_transport_.get());
  const bool told =
      application_stage_ == Application::kMade || application_stage_ == Application::kEof;
  if (stage_ != Stage::kHandshake && told) {
    application_stage_ = Application::kLost;
    const py::Ref callback =
        py::check(PyObject_GetAttr(application_.get(), state_.names.connection_lost));
    call_method(loop_.get(), state_.names.call_soon, callback.get(), error);
  }
  set_stage(Stage::kUnwrapped);
  transport_.reset();
  application_transport_.reset();
  application_.reset();
  get_buffer_.reset();
  buffer_updated_.reset();
  receive_view_.reset();
  receive_buffer_.reset();
  wake_waiter(error == Py_None ? nullptr : error);
  cancel(shutdown_timer_);
  cancel(handshake_timer_);
}

py::Ref TlsProtocol::get_buffer() {
  if (!receive_view_) {
    // Not filled with zeros: memory that no packet reaches is never touched.
    receive_buffer_ = py::check(PyByteArray_FromStringAndSize(nullptr, kReceiveBuffer));
    receive_view_ = py::check(PyMemoryView_FromObject(receive_buffer_.get()));
  }
  engine_->keep();  // only if called in the middle of another delivery
  return same(receive_view_);
}

void TlsProtocol::buffer_updated(Py_ssize_t size) {
  if (size < 0 || size > kReceiveBuffer) py::raise(PyExc_ValueError, "more than the buffer holds");
  const py::Ref buffer = same(receive_buffer_);  // connection_lost() lets go of it
  if (buffer) {
    feed(PyByteArray_AS_STRING(buffer.get()), static_cast<std::size_t>(size));
  } else {
    dispatch();
  }
}

void TlsProtocol::feed(const char* data, std::size_t size) {
  if (stage_ == Stage::kUnwrapped && lost_ > 0) return;
  engine_->offer(data, size);
  if (stage_ != Stage::kWrapped) engine_->keep();  // callbacks of a handshake may run the loop
  try {
    dispatch();
  } catch (...) {
    engine_->keep();
    throw;
  }
  engine_->keep();
}

void TlsProtocol::dispatch() {
  switch (stage_) {
    case Stage::kHandshake:
      return do_handshake();
    case Stage::kWrapped:
      return do_read();
    case Stage::kFlushing:
      return do_flush();
    case Stage::kShutdown:
      return do_shutdown();
    case Stage::kUnwrapped:
      return;
  }
}

bool TlsProtocol::eof_received() {
  eof_received_ = true;
  try {
    if (debug()) {
      const py::Ref text = py::check(PyUnicode_FromString("%r received EOF"));
      call_method(state_.logger, state_.names.debug, text.get(), self_);
    }
    switch (stage_) {
      case Stage::kHandshake: {
        py::Ref error = py::check(PyObject_CallNoArgs(PyExc_ConnectionResetError));
        handshake_complete(py::Error(std::move(error)));
        break;
      }
      case Stage::kWrapped:
        set_stage(Stage::kFlushing);
        if (reading_paused_) return true;
        do_flush();
        break;
      case Stage::kFlushing:
        drain();
        set_stage(Stage::kShutdown);
        do_shutdown();
        break;
      case Stage::kShutdown:
        do_shutdown();
        break;
      case Stage::kUnwrapped:
        break;
    }
  } catch (const py::Error& error) {
    if (error.matches(PyExc_Exception) && transport_)
      call_method(same(transport_).get(), state_.names.close);
    throw;
  }
  return false;
}

void TlsProtocol::resume_writing() {
  sending_paused_ = false;
  if (backlog_.empty()) {
    flush();
  } else {
    drain();
  }
}

// --- handshake

void TlsProtocol::start_handshake() {
  if (debug()) {
    const py::Ref text = py::check(PyUnicode_FromString("%r starts SSL handshake"));
    call_method(state_.logger, state_.names.debug, text.get(), self_);
    handshake_start_ = call_method(loop_.get(), state_.names.time);
  }
  set_stage(Stage::kHandshake);
  handshake_timer_ = call_later(handshake_timeout_.get(), state_.names._check_handshake_timeout);
  // What start_tls() found in the buffer of a stream was put into the MemoryBIO, which the engine
  // need not be reading.
  const py::Ref early = call_method(incoming_.get(), state_.names.read);
  if (PyBytes_Check(early.get()) != 0 && PyBytes_GET_SIZE(early.get()) > 0) {
    engine_->offer(PyBytes_AS_STRING(early.get()),
                   static_cast<std::size_t>(PyBytes_GET_SIZE(early.get())));
    engine_->keep();
  }
  do_handshake();
}

void TlsProtocol::check_handshake_timeout() {
  if (stage_ != Stage::kHandshake) return;
  const py::Ref message = py::check(PyUnicode_FromFormat(
      "SSL handshake is taking longer than %S seconds: aborting the connection",
      handshake_timeout_.get()));
  const py::Ref error = py::check(PyObject_CallOneArg(PyExc_ConnectionAbortedError, message.get()));
  fatal_error(error.get(), "Fatal error on transport");
}

void TlsProtocol::do_handshake() {
  const py::Ref object = same(ssl_object_);
  const py::Ref done =
      py::Ref::steal(PyObject_CallMethodNoArgs(object.get(), state_.names.do_handshake));
  if (done) return handshake_complete(std::nullopt);
  py::Error error = py::Error::fetch();
  if (error.matches(state_.again)) return flush();
  if (!error.matches(state_.ssl_error)) throw py::Error(error);
  handshake_complete(std::move(error));
}

void TlsProtocol::handshake_complete(std::optional<py::Error> error) {
  cancel(handshake_timer_);
  const py::Ref object = same(ssl_object_);
  py::Ref certificate;
  try {
    if (error) throw py::Error(*error);
    set_stage(Stage::kWrapped);
    certificate = call_method(object.get(), state_.names.getpeercert);
  } catch (const py::Error& failure) {
    if (!failure.matches(PyExc_Exception)) throw;
    set_stage(Stage::kUnwrapped);
    fatal_error(failure.exception(), failure.matches(state_.certificate_error)
                                         ? "SSL handshake failed on verifying the certificate"
                                         : "SSL handshake failed");
    wake_waiter(failure.exception());
    return;
  }
  if (handshake_start_ && debug()) {
    const py::Ref now = call_method(loop_.get(), state_.names.time);
    const double took = PyFloat_AsDouble(now.get()) - PyFloat_AsDouble(handshake_start_.get());
    const py::Ref milliseconds = py::check(PyFloat_FromDouble(took * 1e3));
    const py::Ref text = py::check(PyUnicode_FromString("%r: SSL handshake took %.1f ms"));
    call_method(state_.logger, state_.names.debug, text.get(), self_, milliseconds.get());
  }
  PyObject* extra = extra_.get();
  const py::Ref cipher = call_method(object.get(), state_.names.cipher);
  const py::Ref compression = call_method(object.get(), state_.names.compression);
  py::check_status(PyDict_SetItem(extra, state_.names.peercert, certificate.get()));
  py::check_status(PyDict_SetItem(extra, state_.names.cipher, cipher.get()));
  py::check_status(PyDict_SetItem(extra, state_.names.compression, compression.get()));
  py::check_status(PyDict_SetItem(extra, state_.names.ssl_object, object.get()));
  if (application_stage_ == Application::kInit && application_) {
    application_stage_ = Application::kMade;
    const py::Ref application = same(application_);
    const py::Ref transport = same(application_transport_);
    call_method(application.get(), state_.names.connection_made, transport.get());
  }
  wake_waiter(nullptr);
  do_read();
}

// --- farewell

void TlsProtocol::close() { start_shutdown(); }

void TlsProtocol::start_shutdown() {
  if (!takes_writes()) return;
  if (application_transport_) mark_closed(application_transport_.get());
  if (stage_ == Stage::kHandshake) return abort(nullptr);
  set_stage(Stage::kFlushing);
  shutdown_timer_ = call_later(shutdown_timeout_.get(), state_.names._check_shutdown_timeout);
  do_flush();
}

void TlsProtocol::check_shutdown_timeout() {
  if (stage_ != Stage::kFlushing && stage_ != Stage::kShutdown) return;
  const py::Ref message = py::check(PyUnicode_FromString("SSL shutdown timed out"));
  const py::Ref error = py::check(PyObject_CallOneArg(state_.timeout_error, message.get()));
  call_method(same(transport_).get(), state_.names._force_close, error.get());
}

void TlsProtocol::do_flush() {
  do_read();
  if (stage_ == Stage::kFlushing && !backlog_.empty()) drain();
  if (stage_ != Stage::kFlushing) return;  // the application has given up on it
  set_stage(Stage::kShutdown);
  do_shutdown();
}

void TlsProtocol::do_shutdown() {
  if (!eof_received_) {
    const py::Ref object = same(ssl_object_);
    const py::Ref done =
        py::Ref::steal(PyObject_CallMethodNoArgs(object.get(), state_.names.unwrap));
    if (!done) {
      py::Error error = py::Error::fetch();
      if (error.matches(state_.again)) return flush();
      if (!error.matches(state_.ssl_error)) throw py::Error(error);
      return shutdown_complete(std::move(error));
    }
  }
  flush();
  call_eof_received();
  shutdown_complete(std::nullopt);
}

void TlsProtocol::shutdown_complete(std::optional<py::Error> error) {
  if (error) {
    cancel(shutdown_timer_);
    return fatal_error(error->exception(), "Fatal error on transport");
  }
  over_ = true;
  if (!transport_) return;
  // The transport sends what it still has before it closes. A peer that does not read may not delay
  // that for ever: the time-out runs until connection_lost().
  if (!shutdown_timer_ && stage_ == Stage::kShutdown)
    shutdown_timer_ = call_later(shutdown_timeout_.get(), state_.names._check_shutdown_timeout);
  const py::Ref callback = py::check(PyObject_GetAttr(transport_.get(), state_.names.close));
  call_method(loop_.get(), state_.names.call_soon, callback.get());
}

void TlsProtocol::call_eof_received() {
  if (application_stage_ != Application::kMade || !application_) return;
  application_stage_ = Application::kEof;
  try {
    const py::Ref application = same(application_);
    const py::Ref keep_open = call_method(application.get(), state_.names.eof_received);
    if (is_true(keep_open.get())) {
      const py::Ref text = py::check(
          PyUnicode_FromString("returning true from eof_received() has no effect when using ssl"));
      call_method(state_.logger, state_.names.warning, text.get());
    }
  } catch (const py::Error& error) {
    if (must_leave_loop(error)) throw;
    fatal_error(error.exception(), "Error calling eof_received()");
  }
}

void TlsProtocol::abort(PyObject* error) {
  set_stage(Stage::kUnwrapped);
  if (!transport_) return;
  const py::Ref transport = same(transport_);
#if PY_VERSION_HEX < 0x030D0000
  if (error == nullptr) {
    call_method(transport.get(), state_.names.abort);
    return;
  }
#endif
  call_method(transport.get(), state_.names._force_close, error == nullptr ? Py_None : error);
}

bool TlsProtocol::transport_is_closing() {
  if (!transport_) return false;
  const py::Ref transport = same(transport_);
  return is_true(call_method(transport.get(), state_.names.is_closing).get());
}

py::Ref TlsProtocol::extra_info(PyObject* name, PyObject* otherwise) {
  PyObject* found = PyDict_GetItemWithError(extra_.get(), name);
  if (found != nullptr) return py::Ref::borrow(found);
  if (PyErr_Occurred() != nullptr) py::throw_fetched();
  if (!transport_) return py::Ref::borrow(otherwise);
  const py::Ref transport = same(transport_);
  return call_method(transport.get(), state_.names.get_extra_info, name, otherwise);
}

// --- from the application to the peer

template <typename Action>
void TlsProtocol::or_fatal(Action action) {
  try {
    action();
  } catch (const py::Error& error) {
    if (!error.matches(PyExc_Exception)) throw;
    fatal_error(error.exception(), kFatal);
  }
}

bool TlsProtocol::refuses_write() {
  if (takes_writes()) return false;
  if (lost_++ >= kLostWritesToWarn) {
    const py::Ref text = py::check(PyUnicode_FromString("SSL connection is closed"));
    call_method(state_.logger, state_.names.warning, text.get());
  }
  return true;
}

void TlsProtocol::write(PyObject* data) {
  if (PyBytes_Check(data) != 0) {
    const auto size = static_cast<std::size_t>(PyBytes_GET_SIZE(data));
    if (size > 0) send(PyBytes_AS_STRING(data), size, data);
    return;
  }
  if (PyByteArray_Check(data) == 0 && PyMemoryView_Check(data) == 0) {
    PyErr_Format(PyExc_TypeError, "data: expecting a bytes-like instance, got %s",
                 Py_TYPE(data)->tp_name);
    py::throw_fetched();
  }
  const BufferView view(data, PyBUF_SIMPLE);
  if (view.size() > 0) send(view.data(), view.size(), nullptr);
}

// `bytes` is the bytes object that the data lies in, if it does.
void TlsProtocol::send(const char* data, std::size_t size, PyObject* bytes) {
  if (refuses_write()) return;
  if (stage_ == Stage::kWrapped && backlog_.empty() && !sending_paused_ && size <= kChunk) {
    or_fatal([&] {
      engine_->expect(size, 1, native_);
      const std::size_t sent = engine_->write(data, size);
      if (sent < size) queue(data + sent, size - sent);
      flush();
    });
    return;
  }
  if (bytes != nullptr) {
    queue(py::Ref::borrow(bytes));
  } else {
    queue(data, size);
  }
  drain();
}

void TlsProtocol::write_lines(PyObject* list) {
  if (refuses_write()) return;
  const py::Ref pieces = py::check(PySequence_Fast(list, "writelines() takes an iterable"));
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(pieces.get());
  if (count == 1) {
    const py::Ref only = py::Ref::borrow(PySequence_Fast_GET_ITEM(pieces.get(), 0));
    return write(only.get());
  }
  // Small pieces are put together, so that they share records; what is larger than a record is
  // queued as it is.
  std::deque<py::Ref> added;
  std::string gathered;
  const auto cut = [&] {
    if (gathered.empty()) return;
    added.push_back(py::check(
        PyBytes_FromStringAndSize(gathered.data(), static_cast<Py_ssize_t>(gathered.size()))));
    gathered.clear();
  };
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(pieces.get()); ++i) {
    const py::Ref piece = py::Ref::borrow(PySequence_Fast_GET_ITEM(pieces.get(), i));
    const BufferView view(piece.get(), PyBUF_SIMPLE);
    if (gathered.size() + view.size() > kGather) cut();
    if (view.size() < kGather) {
      gathered.append(view.data(), view.size());
    } else if (PyBytes_CheckExact(piece.get()) != 0) {
      added.push_back(same(piece));
    } else {
      added.push_back(
          py::check(PyBytes_FromStringAndSize(view.data(), static_cast<Py_ssize_t>(view.size()))));
    }
  }
  cut();
  for (py::Ref& bytes : added) queue(std::move(bytes));
  drain();
}

void TlsProtocol::queue(const char* data, std::size_t size) {
  queue(py::check(PyBytes_FromStringAndSize(data, static_cast<Py_ssize_t>(size))));
}

void TlsProtocol::queue(py::Ref bytes) {
  if (PyBytes_GET_SIZE(bytes.get()) == 0) return;
  backlog_size_ += static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.get()));
  backlog_.push_back({std::move(bytes), 0});
}

void TlsProtocol::queue_unsent(PyObject* data) {
  const BufferView view(data, PyBUF_SIMPLE);
  queue(view.data(), view.size());
}

// While the transport takes no more, what was written waits as it is: encrypted only when it can
// leave, or at the latest before the farewell.
void TlsProtocol::drain() {
  if (stage_ != Stage::kWrapped && stage_ != Stage::kFlushing) return control_writing();
  if (draining_) return;  // further up on the stack
  draining_ = true;
  try {
    or_fatal([&] {
      while (!backlog_.empty() && (!sending_paused_ || stage_ == Stage::kFlushing)) {
        const bool all = drain_chunk();
        put_out();
        if (!all) break;  // OpenSSL wants to read first
      }
      put_out();
      control_writing();
    });
  } catch (...) {
    draining_ = false;
    throw;
  }
  draining_ = false;
}

bool TlsProtocol::drain_chunk() {
  std::size_t room = std::min(backlog_size_, kChunk);
  engine_->expect(room, backlog_.size(), native_);
  while (room > 0) {
    Piece& piece = backlog_.front();
    const auto size = static_cast<std::size_t>(PyBytes_GET_SIZE(piece.bytes.get()));
    const std::size_t wanted = std::min(room, size - piece.sent);
    const std::size_t sent =
        engine_->write(PyBytes_AS_STRING(piece.bytes.get()) + piece.sent, wanted);
    piece.sent += sent;
    backlog_size_ -= sent;
    room -= sent;
    if (piece.sent == size) backlog_.pop_front();
    if (sent < wanted) return false;
  }
  return true;
}

void TlsProtocol::put_out() {
  if (sending_paused_ || !transport_) return;
  const py::Ref transport = same(transport_);
  if (native_) return engine_->send_to(transport.get());
  const py::Ref data = engine_->take();
  if (data) call_method(transport.get(), state_.names.write, data.get());
}

void TlsProtocol::flush() {
  put_out();
  control_writing();
}

std::size_t TlsProtocol::write_buffer_size() { return engine_->unsent() + backlog_size_; }

void TlsProtocol::control_writing() {
  const std::size_t size = write_buffer_size();
  if (size >= write_limits_.high && !writing_paused_) {
    writing_paused_ = true;
    call_flow_control(state_.names.pause_writing, "protocol.pause_writing() failed");
  } else if (size <= write_limits_.low && writing_paused_) {
    writing_paused_ = false;
    call_flow_control(state_.names.resume_writing, "protocol.resume_writing() failed");
  }
}

void TlsProtocol::call_flow_control(PyObject* method, const char* message) {
  if (!application_) return;
  const py::Ref application = same(application_);
  try {
    call_method(application.get(), method);
  } catch (const py::Error& error) {
    if (must_leave_loop(error)) throw;
    PyObject* transport = application_transport_ ? application_transport_.get() : Py_None;
    const py::Ref context = py::check(Py_BuildValue(
        "{OsOOOOOO}", state_.names.message, message, state_.names.exception, error.exception(),
        state_.names.transport, transport, state_.names.protocol, self_));
    call_method(loop_.get(), state_.names.call_exception_handler, context.get());
  }
}

void TlsProtocol::set_write_limits(PyObject* high, PyObject* low) {
  write_limits_ = limits_of(high, low, kWriteHigh);
  control_writing();
}

// --- from the peer to the application

void TlsProtocol::do_read() {
  if (stage_ != Stage::kWrapped && stage_ != Stage::kFlushing) return;
  or_fatal([&] {
    if (!reading_paused_ && application_) {
      End end = End::kWait;
      if (get_buffer_) {
        read_buffered(end);
      } else {
        read_copied(end);
      }
      reading_ended(end);
      if (backlog_.empty()) {
        flush();
      } else {
        drain();
      }
    }
    control_reading();
  });
}

void TlsProtocol::read_copied(End& end) {
  const py::Ref data = engine_->read_all(end);
  if (!data) return;
  if (engine_->unread() > 0) engine_->keep();  // the application may run the loop
  deliver(data.get());
}

void TlsProtocol::deliver(PyObject* data) {
  const py::Ref application = same(application_);
  if (!stream_) {
    call_method(application.get(), state_.names.data_received, data);
    return;
  }
  StreamReaderFeed feed(*state_.stream_reader);
  py::check_status(feed.find(application.get()));
  py::check_status(feed.give(data));
}

void TlsProtocol::read_buffered(End& end) {
  const py::Ref get_buffer = same(get_buffer_);
  const py::Ref buffer_updated = same(buffer_updated_);
  const py::Ref hint = py::check(PyLong_FromSize_t(engine_->unread()));
  const py::Ref buffer = py::check(PyObject_CallOneArg(get_buffer.get(), hint.get()));
  std::size_t got = 0;
  {
    const BufferView view(buffer.get(), PyBUF_WRITABLE);
    if (view.size() == 0) py::raise(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
    got = engine_->read(view.data(), view.size(), end);
  }
  if (end == End::kFull) call_soon(state_.names._do_read);  // others first
  if (got == 0) return;
  if (engine_->unread() > 0) engine_->keep();  // the application may run the loop
  const py::Ref count = py::check(PyLong_FromSize_t(got));
  py::check(PyObject_CallOneArg(buffer_updated.get(), count.get()));
}

void TlsProtocol::reading_ended(End end) {
  if (end == End::kClosed) {
    call_eof_received();
    start_shutdown();
  } else if (end == End::kFailed) {
    throw py::Error(engine_->take_failure());
  }
}

void TlsProtocol::resume_reading() {
  if (!reading_paused_) return;
  reading_paused_ = false;
  call_soon(state_.names._resume);
}

void TlsProtocol::resume() {
  if (stage_ != Stage::kHandshake) dispatch();
}

void TlsProtocol::control_reading() {
  if (!transport_) return;
  const std::size_t size = engine_->unread();
  const py::Ref transport = same(transport_);
  if (size >= read_limits_.high && !receiving_paused_) {
    receiving_paused_ = true;
    call_method(transport.get(), state_.names.pause_reading);
  } else if (size <= read_limits_.low && receiving_paused_) {
    receiving_paused_ = false;
    call_method(transport.get(), state_.names.resume_reading);
  }
}

void TlsProtocol::set_read_limits(PyObject* high, PyObject* low) {
  read_limits_ = limits_of(high, low, kReadHigh);
  control_reading();
}

// --- ends

void TlsProtocol::fatal_error(PyObject* error, const char* message) {
  const py::Ref transport = same(transport_);
  if (transport) call_method(transport.get(), state_.names._force_close, error);
  if (PyErr_GivenExceptionMatches(error, PyExc_OSError) != 0) {
    if (!debug()) return;
    PyObject* text = PyUnicode_FromString("%r: %s");
    const py::Ref format = py::check(text);
    const py::Ref words = py::check(PyUnicode_FromString(message));
    PyObject* stack[] = {nullptr, state_.logger, format.get(), self_, words.get(), error};
    py::check(PyObject_VectorcallMethod(
        state_.names.debug, stack + 1, 4 | PY_VECTORCALL_ARGUMENTS_OFFSET, state_.debug_arguments));
    return;
  }
  if (PyErr_GivenExceptionMatches(error, state_.cancelled_error) != 0) return;
  const py::Ref context = py::check(Py_BuildValue(
      "{OsOOOOOO}", state_.names.message, message, state_.names.exception, error,
      state_.names.transport, transport ? transport.get() : Py_None, state_.names.protocol, self_));
  call_method(loop_.get(), state_.names.call_exception_handler, context.get());
}

int TlsProtocol::traverse(visitproc visit, void* arg) {
  for (const py::Ref* ref : {&loop_,
                             &application_,
                             &application_transport_,
                             &transport_,
                             &waiter_,
                             &context_,
                             &server_hostname_,
                             &extra_,
                             &ssl_object_,
                             &incoming_,
                             &outgoing_,
                             &get_buffer_,
                             &buffer_updated_,
                             &handshake_timeout_,
                             &shutdown_timeout_,
                             &handshake_timer_,
                             &shutdown_timer_,
                             &handshake_start_,
                             &receive_buffer_,
                             &receive_view_})
    Py_VISIT(ref->get());
  for (const Piece& piece : backlog_) Py_VISIT(piece.bytes.get());
  return engine_ ? engine_->traverse(visit, arg) : 0;
}

void TlsProtocol::clear() {
  std::unique_ptr<TlsEngine> engine = std::move(engine_);
  if (engine) engine->clear();
  backlog_.clear();
  for (py::Ref* ref : {&loop_,
                       &application_,
                       &application_transport_,
                       &transport_,
                       &waiter_,
                       &context_,
                       &server_hostname_,
                       &extra_,
                       &ssl_object_,
                       &incoming_,
                       &outgoing_,
                       &get_buffer_,
                       &buffer_updated_,
                       &handshake_timeout_,
                       &shutdown_timeout_,
                       &handshake_timer_,
                       &shutdown_timer_,
                       &handshake_start_,
                       &receive_buffer_,
                       &receive_view_})
    ref->reset();
}

}  // namespace loop
