// The answer to one HTTP request: ASGI's messages, made into HTTP/1.1.
#include <algorithm>
#include <array>
#include <charconv>

#include "cnode/web/connection.hpp"
#include "cnode/web/exchange.hpp"
#include "cnode/web/response.hpp"

namespace web {
namespace {

constexpr std::size_t kBodyAhead =
    64 * 1024;  // of a request's body, before the connection stops reading
constexpr std::size_t kTogether =
    128 * 1024;  // a body below this leaves in one piece with the head: to copy it is cheaper
                 // than another call of the kernel

}  // namespace

// --- the request's body

bool HttpExchange::is_full() const { return body_.size() >= kBodyAhead; }

void HttpExchange::add_body(std::string_view bytes) {
  if (complete_ || gone_) return;
  body_.append(bytes);
  continued_ = true;  // the client did not wait for it
  wake(Wait::kReceive);
}

void HttpExchange::end_body() {
  body_complete_ = true;
  if (!complete_) wake(Wait::kReceive);
}

py::Ref HttpExchange::poll(Wait what) {
  State& names = state();
  if (what == Wait::kSend) {
    if (gone_) raise_gone();
    if (connection().writing_paused()) return {};
    return py::Ref::borrow(Py_None);
  }
  py::Ref event = py::check(PyDict_New());
  if (gone_ || complete_) {
    py::check_status(PyDict_SetItem(event.get(), names.names.type, names.names.http_disconnect));
    return event;
  }
  if (body_.empty() && (!body_complete_ || end_given_)) {
    if (request_.expects_continue && !continued_ && !body_complete_ && !started_) {
      continued_ = true;
      connection().write("HTTP/1.1 100 Continue\r\n\r\n");
    }
    return {};
  }
  py::check_status(PyDict_SetItem(event.get(), names.names.type, names.names.http_request));
  if (body_.empty()) {
    py::check_status(PyDict_SetItem(event.get(), names.names.body, names.empty_bytes));
  } else {
    set_item(event.get(), names.names.body, bytes_from(body_));
    body_.clear();
    if (body_.capacity() > 4 * kBodyAhead) body_.shrink_to_fit();
  }
  py::check_status(
      PyDict_SetItem(event.get(), names.names.more_body, body_complete_ ? Py_False : Py_True));
  end_given_ = body_complete_;
  connection().body_taken();
  return event;
}

// --- the answer

py::Ref HttpExchange::send(PyObject* message) {
  State& names = state();
  const MessageType type = message_type(names, message);
  if (gone_ && !complete_) raise_gone();
  if (!started_) {
    if (!type.is(names.names.http_response_start)) type.unexpected("http.response.start");
    begin(message);
    return py::Ref::borrow(names.ready_none);
  }
  if (complete_) type.unexpected_after_end();
  if (!type.is(names.names.http_response_body)) type.unexpected("http.response.body");
  return body(message);
}

void HttpExchange::begin(PyObject* message) {
  State& names = state();
  const int status = status_of(names, message);
  head_ = status_line(status);
  status_ = status;
  length_.reset();
  close_ = !request_.keep_alive || connection().service().draining();
  try {
    each_header(names, message,
                [&](std::string_view name, std::string_view value) { add_header(name, value); });
  } catch (...) {
    head_.clear();
    status_ = 0;
    throw;
  }
  started_ = true;
}

// Names that say how the body is framed are ours to say.
void HttpExchange::add_header(std::string_view name, std::string_view value) {
  if (same_name(name, "transfer-encoding")) return;
  if (same_name(name, "content-length")) {
    std::uint64_t length = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), length);
    if (error != std::errc{} || end != value.data() + value.size())
      py::raise(PyExc_ValueError, "content-length is not a number");
    if (length_ && *length_ != length) py::raise(PyExc_ValueError, "two different content-lengths");
    if (length_) return;
    length_ = length;
  } else if (same_name(name, "connection")) {
    has_connection_ = true;
    if (has_token(value, "close")) close_ = true;
  } else if (same_name(name, "date")) {
    has_date_ = true;
  } else if (same_name(name, "server")) {
    has_server_ = true;
  }
  append_header(head_, name, value);
}

// `whole_body`: its size, if the first piece is the last one.
void HttpExchange::finish_head(std::optional<std::size_t> whole_body) {
  Service& service = connection().service();
  if (body_never_sent()) close_ = true;
  if (!has_server_) head_ += service.server_line();
  if (!has_date_) head_ += service.date_line();
  const bool bodiless = status_ < 200 || status_ == 204 || status_ == 304;
  if (bodiless || (request_.head && length_)) {
    framing_ = Framing::kNone;
  } else if (length_) {
    framing_ = Framing::kLength;
  } else if (whole_body) {
    length_ = *whole_body;
    framing_ = Framing::kLength;
    head_ += "content-length: ";
    std::array<char, 24> digits{};
    const auto [end, error] = std::to_chars(digits.data(), digits.data() + digits.size(), *length_);
    head_.append(digits.data(), end);
    head_ += "\r\n";
  } else if (request_.minor == 1) {
    framing_ = Framing::kChunked;
    head_ += "transfer-encoding: chunked\r\n";
  } else {
    framing_ = Framing::kToEnd;
    close_ = true;
  }
  if (request_.head) framing_ = Framing::kNone;
  if (close_ && !has_connection_) {
    head_ += "connection: close\r\n";
  } else if (!close_ && request_.minor == 0 && !has_connection_) {
    head_ += "connection: keep-alive\r\n";
  }
  head_ += "\r\n";
}

py::Ref HttpExchange::body(PyObject* message) {
  State& names = state();
  PyObject* body = PyDict_GetItemWithError(message, names.names.body);
  if (body == nullptr && PyErr_Occurred() != nullptr) py::throw_fetched();
  if (body == nullptr) body = names.empty_bytes;
  PyObject* more_body = PyDict_GetItemWithError(message, names.names.more_body);
  if (more_body == nullptr && PyErr_Occurred() != nullptr) py::throw_fetched();
  const bool more = more_body != nullptr && is_true(more_body);
  const BytesView view(body);
  write_body(body, view.text(), more);
  if (more) return may_write();
  finish();
  return py::Ref::borrow(names.ready_none);
}

void HttpExchange::write_body(PyObject* body, std::string_view bytes, bool more) {
  if (!head_sent_) finish_head(more ? std::nullopt : std::optional(bytes.size()));
  if (framing_ == Framing::kLength && sent_ + bytes.size() > *length_) {
    if (!head_sent_) close_ = true;
    py::raise(PyExc_RuntimeError, "Response content longer than Content-Length");
  }
  head_sent_ = true;
  std::string front = std::move(head_);
  head_.clear();
  if (framing_ == Framing::kNone) bytes = {};
  sent_ += bytes.size();
  const bool chunked = framing_ == Framing::kChunked;
  if (chunked && !bytes.empty()) {
    std::array<char, 20> size{};
    const auto [end, error] =
        std::to_chars(size.data(), size.data() + size.size(), bytes.size(), 16);
    front.append(size.data(), end);
    front += "\r\n";
  }
  if (!chunked && bytes.size() > kTogether && PyBytes_CheckExact(body)) {
    connection().write(front, body);
    return;
  }
  front += bytes;
  if (chunked && !bytes.empty()) front += "\r\n";
  if (chunked && !more) front += "0\r\n\r\n";
  connection().write(front);
}

void HttpExchange::finish() {
  const bool short_of = framing_ == Framing::kLength && sent_ < *length_;
  complete_ = true;
  wake(Wait::kReceive);
  connection().log_access(status_, sent_);
  connection().answered(!close_ && !short_of);
  if (short_of) py::raise(PyExc_RuntimeError, "Response content shorter than Content-Length");
}

bool HttpExchange::answer(int status, std::string_view text) {
  if (gone_ || complete_ || head_sent_) return false;
  head_ = status_line(status);
  status_ = status;
  started_ = true;
  length_.reset();
  has_connection_ = has_date_ = has_server_ = false;
  append_header(head_, "content-type", "text/plain; charset=utf-8");
  close_ = close_ || !request_.keep_alive || connection().service().draining();
  write_body(state().empty_bytes, text, false);
  finish();
  return true;
}

void HttpExchange::ended() {
  if (complete_ || gone_) return;
  const char* what = started_ ? "an application returned without completing its response"
                              : "an application returned without starting its response";
  const py::Ref text = py::check(PyUnicode_FromString(what));
  call_method(state().logger, state().names.error, text.get());
  failed();
}

void HttpExchange::failed() {
  if (complete_ || gone_) return;
  if (!answer(500, "Internal Server Error")) connection().cut();
}

}  // namespace web
