#include "cnode/web/connection.hpp"

#include <algorithm>
#include <array>
#include <new>
#include <utility>

#include "cnode/web/proxy_header.hpp"
#include "cnode/web/response.hpp"
#include "cnode/web/scope.hpp"

namespace web {
namespace {

constexpr std::size_t kDiscardAtMost =
    256 * 1024;  // of a body nobody wants, before the connection is closed
constexpr double kDiscardSeconds = 5;
constexpr double kCloseSeconds = 5;  // for the peer to answer our close frame
constexpr double kQuietSeconds = 1;  // after which nobody is still sending
constexpr std::size_t kMessagesAhead = 256 * 1024;

struct ConnectionObject {
  PyObject_HEAD Connection* connection;
};

Connection*& connection_place(PyObject* self) {
  return reinterpret_cast<ConnectionObject*>(self)->connection;
}

}  // namespace

Connection& connection_of(PyObject* object) {
  Connection* connection = connection_place(object);
  if (connection == nullptr) py::raise(PyExc_RuntimeError, "the connection is gone");
  return *connection;
}

Connection::Connection(Service& service, PyObject* service_object, PyObject* object)
    : service_(service),
      service_object_(Py_NewRef(service_object)),
      object_(object),
      parser_(service.limits().request, *this),
      awaits_proxy_(service.proxy_protocol()) {}

Connection::~Connection() { service_.remove(*this); }

// --- what asyncio calls

void Connection::made(PyObject* transport) {
  transport_ = Py_NewRef(transport);
  context_ = py::check(PyContext_CopyCurrent()).release();
  since_ = Service::now();
  service_.add(*this);
  addresses();
  if (service_.draining()) close();
}

void Connection::lost() {
  if (std::exchange(lost_, true)) return;
  closing_ = true;
  service_.remove(*this);
  if (exchange_ != nullptr) {
    const py::Ref exchange = py::Ref::borrow(exchange_);
    exchange_of(exchange.get()).disconnected();
    log_socket();
    end_exchange();
  }
  frames_.reset();
  Py_CLEAR(transport_);
}

void Connection::received(std::string_view bytes) {
  if (lingering_) {
    last_bytes_ = Service::now();
    return;
  }
  if (closing_ && frames_ == nullptr) return;
  service_.counters().bytes_in += bytes.size();
  last_bytes_ = Service::now();
  feed(bytes);
  update_reading();
}

void Connection::pause_writing() {
  writing_paused_ = true;
  stalled_since_ = Service::now();
  unsent_ = -1;
  update_reading();
}

void Connection::resume_writing() {
  writing_paused_ = false;
  if (exchange_ != nullptr) exchange_of(exchange_).writable();
  if (!answering_ && request_done_ && !closing_ && !frames_) return next_request();
  update_reading();
}

// --- bytes in

std::string_view Connection::take_proxy_header(std::string_view bytes) {
  pending_.append(bytes);
  const ProxyHeader header = read_proxy_header(pending_);
  if (header.state == ProxyHeader::State::kBad) {
    ++service_.counters().refused_total;
    abort();
    return {};
  }
  if (header.state == ProxyHeader::State::kMore) return {};
  awaits_proxy_ = false;
  if (header.known) {
    const auto pair = [](const std::string& host, std::uint16_t port) {
      return py::check(Py_BuildValue("(si)", host.c_str(), static_cast<int>(port)));
    };
    Py_XSETREF(client_, pair(header.client, header.client_port).release());
    Py_XSETREF(server_, pair(header.server, header.server_port).release());
    client_text_ = header.client + ":" + std::to_string(header.client_port);
  }
  behind_proxy_ = std::exchange(pending_, {}).substr(header.used);
  return behind_proxy_;
}

void Connection::feed(std::string_view bytes) {
  if (awaits_proxy_) {
    bytes = take_proxy_header(bytes);
    if (awaits_proxy_ || closing_) return;
  }
  if (frames_) return feed_frames(bytes);
  while (!bytes.empty() && !closing_) {
    // Pipelined: its turn comes. Who does not read our answers gets no more of them.
    if (request_done_ && (answering_ || writing_paused_)) {
      pending_.append(bytes);
      return;
    }
    const bool idle = !parser_.in_request();
    feeding_ = true;
    const RequestParser::Outcome outcome = parser_.feed(bytes);
    feeding_ = false;
    if (idle && parser_.in_request()) since_ = last_bytes_;  // empty lines are no beginning
    bytes.remove_prefix(std::min(outcome.used, bytes.size()));
    switch (outcome.state) {
      case RequestParser::State::kMore:
        return;
      case RequestParser::State::kEnded:
        parser_.next();
        if (discarding_) {
          discarding_ = false;
          if (!keep_) return close();
          since_ = last_bytes_;
        }
        break;
      case RequestParser::State::kRefused:
        return refuse(outcome.status, outcome.reason);
      case RequestParser::State::kStopped:
        if (error_) throw_error();
        if (refusal_ != 0) return refuse(refusal_, refusal_ == 404 ? "Not Found" : "Bad Request");
        return close();
    }
  }
}

void Connection::feed_frames(std::string_view bytes) {
  const py::Ref exchange = py::Ref::borrow(exchange_);
  pinged_ = false;
  frames_->feed(bytes);
  flush_frames();
  if (!frames_ || !frames_->finished()) return;
  if (frames_->close_received()) return close();
  linger();
}

bool Connection::on_end() {
  request_done_ = true;
  if (HttpExchange* exchange = http()) guard([&] { exchange->end_body(); });
  return !error_;
}

bool Connection::on_body(std::string_view bytes) {
  if (discarding_) {
    discarded_ += bytes.size();
    return discarded_ <= kDiscardAtMost;
  }
  if (HttpExchange* exchange = http()) guard([&] { exchange->add_body(bytes); });
  return !error_;
}

bool Connection::on_head(const RequestParser::Head& head) {
  guard([&] { begin_request(head); });
  return !error_ && refusal_ == 0;
}

// C code is between us and the caller: an exception waits until it has returned.
template <typename Action>
void Connection::guard(Action action) {
  try {
    action();
  } catch (const py::Error& error) {
    error_ = std::make_unique<py::Error>(error);
  }
}

void Connection::throw_error() {
  const std::unique_ptr<py::Error> error = std::move(error_);
  throw py::Error(*error);
}

void Connection::begin_request(const RequestParser::Head& head) {
  State& state = service_.state();
  ++service_.counters().requests_total;
  fresh_ = false;
  request_done_ = false;
  discarding_ = false;
  answering_ = true;
  keep_ = head.keep_alive;
  began_ = Service::now();
  method_ = head.method;
  target_ = head.target;
  minor_ = head.minor;
  const bool websocket = is_websocket(head);
  const Target target = parts_of(head.target);
  const std::string path = percent_decoded(target.path);
  const Service::Application* application = service_.application_for(path);
  if (application == nullptr || head.method == "CONNECT") {
    refusal_ = application == nullptr ? 404 : 400;
    return;
  }
  std::unique_ptr<Exchange> made;
  if (websocket) {
    SocketExchange::Request request;
    if (refusal_ = websocket_request(head, request); refusal_ != 0) return;
    made = std::make_unique<SocketExchange>(*this, object_, std::move(request));
  } else {
    made = std::make_unique<HttpExchange>(
        *this, object_,
        HttpExchange::Request{head.method == "HEAD", head.minor, head.keep_alive,
                              head.expects_continue});
  }
  const py::Ref scope =
      make_scope(state, {head, target, path, *application,
                         websocket ? service_.websocket_scheme() : service_.scheme(), client_,
                         server_, websocket});
  exchange_ = new_exchange(state, std::move(made)).release();
  is_socket_ = websocket;
  ++(websocket ? service_.counters().websockets : service_.counters().requests);
  const py::Ref exchange = py::Ref::borrow(exchange_);
  const py::Ref context = py::check(PyContext_Copy(context_));
  exchange_of(exchange.get()).start(application->callable, scope, context);
}

void Connection::refuse(int status, std::string_view reason) {
  ++service_.counters().refused_total;
  if (exchange_ != nullptr) {
    const py::Ref exchange = py::Ref::borrow(exchange_);
    if (HttpExchange* current = http(); current != nullptr && !current->head_sent()) {
      write_refusal(status, reason);
      log_access(status, reason.size());
    }
    exchange_of(exchange.get()).disconnected();
    end_exchange();
  } else {
    write_refusal(status, reason);
    if (refusal_ != 0) log_access(status, reason.size());
  }
  linger();
}

void Connection::write_refusal(int status, std::string_view reason) {
  std::string text = status_line(status);
  text += service_.server_line();
  text += service_.date_line();
  text += "content-type: text/plain; charset=utf-8\r\ncontent-length: " +
          std::to_string(reason.size()) + "\r\nconnection: close\r\n";
  if (status == 426) text += "upgrade: websocket\r\nsec-websocket-version: 13\r\n";
  text += "\r\n";
  text += reason;
  write(text);
}

// --- bytes out

// The transport may know that the client has gone before it tells us, which it does in a turn of
// its own; what is written until then it would complain of.
bool Connection::can_write() {
  if (transport_ == nullptr || lost_ || lingering_) return false;
  if (closing_ || !is_true(call_method(transport_, service_.state().names.is_closing).get()))
    return true;
  if (exchange_ != nullptr) exchange_of(exchange_).disconnected();
  return false;
}

void Connection::write(std::string_view bytes) {
  if (bytes.empty() || !can_write()) return;
  service_.counters().bytes_out += bytes.size();
  const py::Ref data = bytes_from(bytes);
  call_method(transport_, service_.state().names.write, data.get());
}

void Connection::write(std::string_view head, PyObject* body) {
  if (!can_write()) return;
  State& state = service_.state();
  service_.counters().bytes_out += head.size() + static_cast<std::size_t>(PyBytes_GET_SIZE(body));
  if (!head.empty()) call_method(transport_, state.names.write, bytes_from(head).get());
  if (transport_ != nullptr) call_method(transport_, state.names.write, body);
}

void Connection::flush_frames() {
  if (!frames_ || frames_->output().empty()) return;
  std::string bytes;
  std::swap(bytes, frames_->output());
  write(bytes);
}

// --- the turns of requests

void Connection::body_taken() {
  if (!feeding_) update_reading();
}

// The answer is complete.
void Connection::answered(bool keep) {
  answering_ = false;
  keep_ = keep && keep_ && !service_.draining();
  since_ = Service::now();
  const py::Ref self = py::Ref::borrow(object_);
  const HttpExchange* exchange = http();
  const bool never_sent = exchange != nullptr && exchange->body_never_sent();
  end_exchange();
  if (!request_done_ && !never_sent) {
    // Its body is still coming. Closing now could take the answer away from a client that is
    // writing.
    discarding_ = true;
    discarded_ = 0;
    update_reading();
    return;
  }
  if (!keep_) return close();
  if (!feeding_) next_request();
}

void Connection::next_request() {
  if (pending_.empty()) return update_reading();
  const std::string bytes = std::exchange(pending_, {});
  last_bytes_ = Service::now();
  feed(bytes);
  update_reading();
}

void Connection::log_access(int status, std::uint64_t sent, std::optional<std::uint16_t> code) {
  if (service_.access() == nullptr) return;
  const py::Ref client = text_from(client_text_);
  const py::Ref method = text_from(method_);
  const py::Ref target = text_from(target_);
  const py::Ref close_code = code ? py::check(PyLong_FromLong(*code)) : py::Ref::borrow(Py_None);
  State& state = service_.state();
  const py::Ref done = py::Ref::steal(PyObject_CallFunction(
      service_.access(), "OOOOiKdO", client.get(), method.get(), target.get(),
      minor_ == 0 ? state.version_10 : state.version_11, status,
      static_cast<unsigned long long>(sent), Service::now() - began_, close_code.get()));
  if (!done) PyErr_WriteUnraisable(service_.access());  // the answer is as good without its line
}

// When a WebSocket ends, or was not to be.
void Connection::log_socket() {
  if (const SocketExchange* one = socket(); one != nullptr && one->status() != 0)
    log_access(one->status(), one->sent(), one->close_code());
}

void Connection::end_exchange() {
  if (exchange_ == nullptr) return;
  --(is_socket_ ? service_.counters().websockets : service_.counters().requests);
  Py_CLEAR(exchange_);
}

void Connection::open_frames(const std::optional<DeflateTerms>& deflate, Frames::Sink& sink) {
  frames_ = std::make_unique<Frames>(sink, service_.limits().message, deflate);
  last_bytes_ = Service::now();
  const std::string bytes = std::exchange(pending_, {});
  if (!bytes.empty()) feed_frames(bytes);
  update_reading();
}

void Connection::close_socket() {
  since_ = Service::now();
  if (frames_ && frames_->finished()) close();
  update_reading();
}

void Connection::refuse_socket(int status, std::string_view text) {
  write_refusal(status, text);
  cut();
}

void Connection::cut() {
  const py::Ref self = py::Ref::borrow(object_);
  log_socket();
  end_exchange();
  close();
}

// The last word is said, and the client may still be sending. To close with unread bytes would
// reset the connection and take that word away from it.
void Connection::linger() {
  if (std::exchange(closing_, true) || transport_ == nullptr) return;
  lingering_ = true;
  since_ = stalled_since_ = last_bytes_ = Service::now();
  unsent_ = -1;
  const State::Names& names = service_.state().names;
  if (is_true(call_method(transport_, names.can_write_eof).get()))
    call_method(transport_, names.write_eof);
  if (transport_ != nullptr && std::exchange(reading_paused_, false))
    call_method(transport_, names.resume_reading);
}

void Connection::close() {
  if (transport_ == nullptr) return;
  if (std::exchange(closing_, true) && !std::exchange(lingering_, false)) return;
  since_ = Service::now();
  stalled_since_ = since_;
  unsent_ = -1;
  call_method(transport_, service_.state().names.close);
}

void Connection::abort() {
  closing_ = true;
  if (transport_ != nullptr) call_method(transport_, service_.state().names.abort);
}

void Connection::drain() {
  if (lingering_) return close();
  if (SocketExchange* one = socket()) return one->close(1012);
  if (!answering_ && !discarding_ && !parser_.in_request()) close();
}

void Connection::update_reading() {
  if (transport_ == nullptr || closing_) return;
  bool pause = false;
  if (frames_) {
    const SocketExchange* one = socket();
    pause = writing_paused_ || (one != nullptr && one->waiting_bytes() > kMessagesAhead);
  } else if (answering_) {
    const HttpExchange* one = http();
    pause = !pending_.empty() || (one != nullptr && one->is_full());
  } else {
    pause = writing_paused_;
  }
  if (pause == reading_paused_) return;
  reading_paused_ = pause;
  State& state = service_.state();
  call_method(transport_, pause ? state.names.pause_reading : state.names.resume_reading);
}

// Cuts off who is late.
void Connection::check(double now) {
  if (transport_ == nullptr) return;
  const py::Ref self = py::Ref::borrow(object_);
  const Service::Limits& limits = service_.limits();
  if (writing_paused_ || closing_) {
    const py::Ref size = call_method(transport_, service_.state().names.get_write_buffer_size);
    const long long unsent = PyLong_AsLongLong(size.get());
    if (unsent != unsent_) {
      unsent_ = unsent;
      stalled_since_ = now;
    }
    if (now - stalled_since_ > limits.body) return abort();
    if (lingering_ && (now - since_ > kCloseSeconds || now - last_bytes_ > kQuietSeconds))
      return close();
    if (closing_) return;
  }
  if (frames_) {
    if (frames_->close_sent()) {
      if (now - since_ > kCloseSeconds) abort();
      return;
    }
    if (limits.ping <= 0 || reading_paused_) return;
    if (pinged_ && now - last_bytes_ > 2 * limits.ping) {
      frames_->fail(1011);
      flush_frames();
      return close();
    }
    if (!pinged_ && now - last_bytes_ > limits.ping) {
      pinged_ = true;
      frames_->ping();
      flush_frames();
    }
    return;
  }
  if (discarding_) {
    if (now - since_ > kDiscardSeconds) close();
    return;
  }
  if (answering_) {
    const HttpExchange* one = http();
    if (one != nullptr && !request_done_ && one->receiving() && now - last_bytes_ > limits.body)
      refuse(408, "Request Timeout");
    return;
  }
  if (parser_.in_request() || awaits_proxy_ || fresh_) {
    if (now - since_ <= limits.head) return;
    if (parser_.in_request()) return refuse(408, "Request Timeout");
    return close();
  }
  if (now - since_ > limits.idle) close();
}

// --- who is at the other end

void Connection::addresses() {
  State& state = service_.state();
  const auto pair = [&](PyObject* name) -> py::Ref {
    py::Ref found = call_method(transport_, state.names.get_extra_info, name);
    if (!PyTuple_Check(found.get()) || PyTuple_GET_SIZE(found.get()) < 2)
      return py::Ref::borrow(Py_None);  // a Unix socket
    return py::check(PyTuple_GetSlice(found.get(), 0, 2));
  };
  client_ = pair(state.names.peername).release();
  server_ = pair(state.names.sockname).release();
  if (client_ == Py_None) return;
  const py::Ref text = py::check(
      PyUnicode_FromFormat("%S:%S", PyTuple_GET_ITEM(client_, 0), PyTuple_GET_ITEM(client_, 1)));
  client_text_ = py::text_of(text.get());
}

HttpExchange* Connection::http() const {
  if (exchange_ == nullptr || is_socket_) return nullptr;
  return static_cast<HttpExchange*>(&exchange_of(exchange_));
}

SocketExchange* Connection::socket() const {
  if (exchange_ == nullptr || !is_socket_) return nullptr;
  return static_cast<SocketExchange*>(&exchange_of(exchange_));
}

int Connection::traverse(visitproc visit, void* arg) {
  Py_VISIT(service_object_);
  Py_VISIT(transport_);
  Py_VISIT(exchange_);
  Py_VISIT(context_);
  return 0;
}

void Connection::clear() {
  Py_CLEAR(transport_);
  end_exchange();
  Py_CLEAR(context_);
  Py_CLEAR(client_);
  Py_CLEAR(server_);
}

// --- the type

namespace {

PyObject* connection_made(PyObject* self, PyObject* transport) {
  return guarded<PyObject*>(nullptr, [&] {
    connection_of(self).made(transport);
    return Py_NewRef(Py_None);
  });
}

PyObject* connection_lost(PyObject* self, PyObject*) {
  const py::Ref alive = py::Ref::borrow(self);
  return guarded<PyObject*>(nullptr, [&] {
    connection_of(self).lost();
    return Py_NewRef(Py_None);
  });
}

PyObject* get_buffer(PyObject* self, PyObject*) {
  return guarded<PyObject*>(nullptr,
                            [&] { return Py_NewRef(connection_of(self).service().view()); });
}

PyObject* buffer_updated(PyObject* self, PyObject* number) {
  const py::Ref alive = py::Ref::borrow(self);
  return guarded<PyObject*>(nullptr, [&] {
    const Py_ssize_t size = PyLong_AsSsize_t(number);
    if (size == -1 && PyErr_Occurred() != nullptr) py::throw_fetched();
    if (size < 0 || size > Service::kBuffer)
      py::raise(PyExc_ValueError, "more than the buffer holds");
    Connection& connection = connection_of(self);
    connection.received({connection.service().buffer(), static_cast<std::size_t>(size)});
    return Py_NewRef(Py_None);
  });
}

PyObject* eof_received(PyObject*, PyObject*) { Py_RETURN_FALSE; }

template <void (Connection::*kAction)()>
PyObject* connection_do(PyObject* self, PyObject*) {
  const py::Ref alive = py::Ref::borrow(self);
  return guarded<PyObject*>(nullptr, [&] {
    (connection_of(self).*kAction)();
    return Py_NewRef(Py_None);
  });
}

int connection_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return connection_place(self) == nullptr ? 0 : connection_place(self)->traverse(visit, arg);
}

int connection_clear(PyObject* self) {
  if (connection_place(self) != nullptr) connection_place(self)->clear();
  return 0;
}

void connection_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  if (Connection* connection = connection_place(self)) {
    connection->clear();
    const py::Ref service = connection->release_service();
    delete std::exchange(connection_place(self), nullptr);
  }
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef g_connection_methods[] = {
    {"connection_made", connection_made, METH_O, nullptr},
    {"connection_lost", connection_lost, METH_O, nullptr},
    {"get_buffer", get_buffer, METH_O, nullptr},
    {"buffer_updated", buffer_updated, METH_O, nullptr},
    {"eof_received", eof_received, METH_NOARGS, nullptr},
    {"pause_writing", connection_do<&Connection::pause_writing>, METH_NOARGS, nullptr},
    {"resume_writing", connection_do<&Connection::resume_writing>, METH_NOARGS, nullptr},
    {}};

PyType_Slot g_connection_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(connection_dealloc)},
                                    {Py_tp_traverse, reinterpret_cast<void*>(connection_traverse)},
                                    {Py_tp_clear, reinterpret_cast<void*>(connection_clear)},
                                    {Py_tp_methods, g_connection_methods},
                                    {0, nullptr}};

PyType_Spec g_connection_spec{
    "erlang_web._http.Connection", sizeof(ConnectionObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    g_connection_slots};

}  // namespace

int connection_exec(PyObject* module, State& state) {
  return guarded(-1, [&] {
    const py::Ref asyncio = py::import("asyncio");
    const py::Ref base = py::attribute(asyncio.get(), "BufferedProtocol");
    const py::Ref bases = py::check(PyTuple_Pack(1, base.get()));
    state.connection_type = reinterpret_cast<PyTypeObject*>(
        py::check(PyType_FromModuleAndSpec(module, &g_connection_spec, bases.get())).release());
    return 0;
  });
}

py::Ref new_connection(State& state, Service& service, PyObject* service_object) {
  py::Ref object = py::check(state.connection_type->tp_alloc(state.connection_type, 0));
  connection_place(object.get()) = new Connection(service, service_object, object.get());
  return object;
}

}  // namespace web
