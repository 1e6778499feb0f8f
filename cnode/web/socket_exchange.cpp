// One WebSocket as the application has it: ASGI's messages, made into the handshake's answer and
// frames.
#include <array>

#include "cnode/web/connection.hpp"
#include "cnode/web/exchange.hpp"
#include "cnode/web/response.hpp"

namespace web {
namespace {

constexpr std::string_view kGuid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";  // RFC 6455, 1.3
constexpr std::size_t kDenialBound = 1024 * 1024;

// The answer to the client's key.
std::string accept_of(State& state, const std::string& key) {
  const py::Ref hash =
      py::check(PyObject_CallOneArg(state.sha1, bytes_from(key + std::string(kGuid)).get()));
  const py::Ref digest = py::check(PyObject_CallMethod(hash.get(), "digest", nullptr));
  const py::Ref text = py::check(PyObject_CallOneArg(state.to_base64, digest.get()));
  const BytesView view(text.get());
  return std::string(view.text().substr(0, 28));  // without the line's end
}

std::string_view utf8_of(PyObject* text) {
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(text, &size);
  if (data == nullptr) py::throw_fetched();
  return {data, static_cast<std::size_t>(size)};
}

}  // namespace

py::Ref SocketExchange::poll(Wait what) {
  State& names = state();
  if (what == Wait::kSend) {
    if (gone_) raise_gone();
    if (connection().writing_paused()) return {};
    return py::Ref::borrow(Py_None);
  }
  if (!connect_given_) {
    connect_given_ = true;
    py::Ref event = py::check(PyDict_New());
    py::check_status(PyDict_SetItem(event.get(), names.names.type, names.names.websocket_connect));
    return event;
  }
  if (messages_.empty()) {
    if (!gone_ || disconnect_told_) return {};
    push_disconnect(1006, {});
  }
  Message message = messages_.front();
  messages_.pop_front();
  waiting_bytes_ -= message.size;
  connection().body_taken();
  return py::Ref::steal(message.value);
}

py::Ref SocketExchange::send(PyObject* message) {
  State& names = state();
  const MessageType type = message_type(names, message);
  if (gone_) raise_gone();
  switch (stage_) {
    case Stage::kConnecting:
      if (type.is(names.names.websocket_accept)) {
        accept(message);
      } else if (type.is(names.names.websocket_close)) {
        stage_ = Stage::kClosed;
        disconnected_by_us(1006);
        refuse(403, "Forbidden");
      } else if (type.is(names.names.websocket_response_start)) {
        deny_begin(message);
      } else {
        type.unexpected("websocket.accept");
      }
      break;
    case Stage::kOpen:
      if (type.is(names.names.websocket_send)) {
        send_message(message);
      } else if (type.is(names.names.websocket_close)) {
        close_by(message);
      } else {
        type.unexpected("websocket.send");
      }
      break;
    case Stage::kDenying:
      if (!type.is(names.names.websocket_response_body))
        type.unexpected("websocket.http.response.body");
      deny_body(message);
      break;
    case Stage::kClosed:
      PyErr_Format(PyExc_RuntimeError,
                   "Unexpected ASGI message '%U', after sending 'websocket.close' or response "
                   "already completed.",
                   type.type);
      py::throw_fetched();
  }
  return may_write();
}

void SocketExchange::accept(PyObject* message) {
  State& names = state();
  std::string head = status_line(101);
  head += "upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: ";
  head += accept_of(names, request_.key);
  head += "\r\n";
  if (PyObject* subprotocol = item_of(message, names.names.subprotocol))
    append_header(head, "sec-websocket-protocol", utf8_of(subprotocol));
  std::optional<DeflateTerms> deflate;
  if (connection().service().compress()) deflate = choose_deflate(request_.extensions);
  if (deflate) append_header(head, "sec-websocket-extensions", deflate->header());
  bool has_date = false, has_server = false;
  each_header(names, message, [&](std::string_view name, std::string_view value) {
    if (same_name(name, "sec-websocket-protocol") && item_of(message, names.names.subprotocol))
      return;
    has_date = has_date || same_name(name, "date");
    has_server = has_server || same_name(name, "server");
    append_header(head, name, value);
  });
  if (!has_server) head += connection().service().server_line();
  if (!has_date) head += connection().service().date_line();
  head += "\r\n";
  stage_ = Stage::kOpen;
  status_ = 101;
  connection().write(head);
  connection().open_frames(deflate, *this);
}

void SocketExchange::send_message(PyObject* message) {
  State& names = state();
  PyObject* text = item_of(message, names.names.text);
  PyObject* bytes = item_of(message, names.names.bytes);
  if ((text == nullptr) == (bytes == nullptr) && text == nullptr)
    py::raise(PyExc_ValueError, "websocket.send needs text or bytes");
  Frames& frames = *connection().frames();
  if (text != nullptr) {
    const std::string_view characters = utf8_of(text);
    if (frames.send(Frames::Kind::kText, characters)) sent_ += characters.size();
  } else {
    const BytesView view(bytes);
    if (frames.send(Frames::Kind::kBinary, view.text())) sent_ += view.text().size();
  }
  connection().flush_frames();
}

void SocketExchange::close_by(PyObject* message) {
  State& names = state();
  long code = 1000;
  if (PyObject* number = item_of(message, names.names.code)) {
    code = PyLong_AsLong(number);
    if (code == -1 && PyErr_Occurred() != nullptr) py::throw_fetched();
  }
  std::string reason;
  if (PyObject* text = item_of(message, names.names.reason)) reason = utf8_of(text);
  if (!Frames::is_close_code(code) && code != 1005)
    py::raise(PyExc_ValueError, "not a close code that may be sent");
  if (reason.size() > 123) py::raise(PyExc_ValueError, "a close reason has 123 bytes at most");
  stage_ = Stage::kClosed;
  closed_with(static_cast<std::uint16_t>(code));
  connection().frames()->close(static_cast<std::uint16_t>(code), reason);
  connection().flush_frames();
  connection().close_socket();
}

void SocketExchange::closed_with(std::uint16_t code) {
  if (!close_code_) close_code_ = code;
}

void SocketExchange::refuse(int status, std::string_view text) {
  status_ = status;
  sent_ = text.size();
  connection().refuse_socket(status, text);
}

void SocketExchange::close(std::uint16_t code) {
  if (stage_ != Stage::kOpen) return;
  stage_ = Stage::kClosed;
  closed_with(code);
  connection().frames()->close(code, {});
  disconnected_by_us(code);
  connection().flush_frames();
  connection().close_socket();
}

void SocketExchange::deny_begin(PyObject* message) {
  State& names = state();
  denial_status_ = status_of(names, message);
  denial_ = status_line(denial_status_);
  each_header(names, message, [&](std::string_view name, std::string_view value) {
    if (same_name(name, "content-length") || same_name(name, "transfer-encoding") ||
        same_name(name, "connection"))
      return;
    append_header(denial_, name, value);
  });
  denial_ += connection().service().server_line();
  denial_ += connection().service().date_line();
  stage_ = Stage::kDenying;
}

// Put together, so that its length can be said.
void SocketExchange::deny_body(PyObject* message) {
  State& names = state();
  if (PyObject* body = item_of(message, names.names.body)) {
    const BytesView view(body);
    if (denial_body_.size() + view.text().size() > kDenialBound)
      py::raise(PyExc_ValueError, "a refusal of a WebSocket has 1 MiB at most");
    denial_body_ += view.text();
  }
  PyObject* more = item_of(message, names.names.more_body);
  if (more != nullptr && is_true(more)) return;
  denial_ +=
      "content-length: " + std::to_string(denial_body_.size()) + "\r\nconnection: close\r\n\r\n";
  denial_ += denial_body_;
  stage_ = Stage::kClosed;
  status_ = denial_status_;
  sent_ = denial_body_.size();
  connection().write(denial_);
  disconnected_by_us(1006);
  connection().cut();
}

// wslay, which calls this, is C: no exception may pass it.
void SocketExchange::on_message(Frames::Kind kind, std::string_view bytes) {
  if (stage_ != Stage::kOpen) return;
  try {
    add_message(kind, bytes);
  } catch (const py::Error& error) {
    connection().frames()->fail(1011);
  }
}

void SocketExchange::add_message(Frames::Kind kind, std::string_view bytes) {
  State& names = state();
  py::Ref event = py::check(PyDict_New());
  py::check_status(PyDict_SetItem(event.get(), names.names.type, names.names.websocket_receive));
  if (kind == Frames::Kind::kText) {
    py::Ref text = py::Ref::steal(
        PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), nullptr));
    if (!text) {  // it was compressed
      PyErr_Clear();
      return connection().frames()->fail(1007);
    }
    set_item(event.get(), names.names.text, text);
  } else {
    set_item(event.get(), names.names.bytes, bytes_from(bytes));
  }
  // What a message costs beside its bytes, so that empty ones are bounded, too.
  const std::size_t size = bytes.size() + 256;
  messages_.push_back({event.release(), size});
  waiting_bytes_ += size;
  wake(Wait::kReceive);
}

void SocketExchange::on_close(std::uint16_t code, std::string_view reason) {
  stage_ = Stage::kClosed;
  closed_with(code);
  push_disconnect(code, reason);
  gone_ = true;
  wake(Wait::kReceive);
  wake(Wait::kSend);
}

void SocketExchange::push_disconnect(std::uint16_t code, std::string_view reason) {
  if (std::exchange(disconnect_told_, true)) return;
  State& names = state();
  py::Ref event = py::check(PyDict_New());
  py::check_status(PyDict_SetItem(event.get(), names.names.type, names.names.websocket_disconnect));
  set_item(event.get(), names.names.code, py::check(PyLong_FromLong(code)));
  set_item(event.get(), names.names.reason,
           py::check(PyUnicode_DecodeUTF8(reason.data(), static_cast<Py_ssize_t>(reason.size()),
                                          "replace")));
  messages_.push_back({event.release(), 0});
}

void SocketExchange::disconnected_by_us(std::uint16_t code) {
  push_disconnect(code, {});
  wake(Wait::kReceive);
}

void SocketExchange::disconnected() {
  if (status_ == 101) closed_with(1006);
  if (!gone_ && stage_ != Stage::kClosed) push_disconnect(1006, {});
  if (stage_ == Stage::kClosed && !disconnect_told_) push_disconnect(1005, {});
  stage_ = Stage::kClosed;
  Exchange::disconnected();
}

void SocketExchange::ended() {
  if (gone_) return;
  switch (stage_) {
    case Stage::kConnecting:
    case Stage::kDenying:
      return failed();
    case Stage::kOpen:
      return close(1000);
    case Stage::kClosed:
      return;
  }
}

void SocketExchange::failed() {
  if (gone_) return;
  switch (stage_) {
    case Stage::kConnecting:
    case Stage::kDenying:
      stage_ = Stage::kClosed;
      return refuse(500, "Internal Server Error");
    case Stage::kOpen:
      return close(1011);
    case Stage::kClosed:
      return;
  }
}

int SocketExchange::traverse(visitproc visit, void* arg) {
  for (auto& message : messages_) Py_VISIT(message.value);
  return Exchange::traverse(visit, arg);
}

void SocketExchange::clear() {
  for (auto& message : std::exchange(messages_, {})) Py_CLEAR(message.value);
  Exchange::clear();
}

}  // namespace web
