#include "cnode/web/response.hpp"

#include <algorithm>
#include <array>

namespace web {
namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string_view reason_of(int status) {
  switch (status) {
    case 100:
      return "Continue";
    case 101:
      return "Switching Protocols";
    case 102:
      return "Processing";
    case 103:
      return "Early Hints";
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 202:
      return "Accepted";
    case 203:
      return "Non-Authoritative Information";
    case 204:
      return "No Content";
    case 205:
      return "Reset Content";
    case 206:
      return "Partial Content";
    case 207:
      return "Multi-Status";
    case 208:
      return "Already Reported";
    case 226:
      return "IM Used";
    case 300:
      return "Multiple Choices";
    case 301:
      return "Moved Permanently";
    case 302:
      return "Found";
    case 303:
      return "See Other";
    case 304:
      return "Not Modified";
    case 305:
      return "Use Proxy";
    case 307:
      return "Temporary Redirect";
    case 308:
      return "Permanent Redirect";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 402:
      return "Payment Required";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 406:
      return "Not Acceptable";
    case 407:
      return "Proxy Authentication Required";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 410:
      return "Gone";
    case 411:
      return "Length Required";
    case 412:
      return "Precondition Failed";
    case 413:
      return "Content Too Large";
    case 414:
      return "URI Too Long";
    case 415:
      return "Unsupported Media Type";
    case 416:
      return "Range Not Satisfiable";
    case 417:
      return "Expectation Failed";
    case 418:
      return "I'm a Teapot";
    case 421:
      return "Misdirected Request";
    case 422:
      return "Unprocessable Content";
    case 423:
      return "Locked";
    case 424:
      return "Failed Dependency";
    case 425:
      return "Too Early";
    case 426:
      return "Upgrade Required";
    case 428:
      return "Precondition Required";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 451:
      return "Unavailable For Legal Reasons";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    case 506:
      return "Variant Also Negotiates";
    case 507:
      return "Insufficient Storage";
    case 508:
      return "Loop Detected";
    case 510:
      return "Not Extended";
    case 511:
      return "Network Authentication Required";
    default:
      return "";
  }
}

// The characters of a token (RFC 9110).
constexpr std::array<bool, 256> kToken = [] {
  std::array<bool, 256> token{};
  for (int c = '0'; c <= '9'; ++c) token.at(static_cast<std::size_t>(c)) = true;
  for (int c = 'a'; c <= 'z'; ++c) token.at(static_cast<std::size_t>(c)) = true;
  for (int c = 'A'; c <= 'Z'; ++c) token.at(static_cast<std::size_t>(c)) = true;
  for (const char c : {'!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~'})
    token.at(static_cast<std::size_t>(c)) = true;
  return token;
}();

}  // namespace

std::string status_line(int status) {
  std::string line;
  line.reserve(512);
  line += "HTTP/1.1 ";
  line += std::to_string(status);
  line += ' ';
  line += reason_of(status);
  line += "\r\n";
  return line;
}

bool same_name(std::string_view name, std::string_view lower_case) {
  return name.size() == lower_case.size() &&
         std::equal(name.begin(), name.end(), lower_case.begin(),
                    [](char a, char b) { return lower(a) == b; });
}

bool has_token(std::string_view list, std::string_view token) {
  while (!list.empty()) {
    const auto end = std::min(list.find(','), list.size());
    std::string_view part = list.substr(0, end);
    while (!part.empty() && (part.front() == ' ' || part.front() == '\t')) part.remove_prefix(1);
    while (!part.empty() && (part.back() == ' ' || part.back() == '\t')) part.remove_suffix(1);
    if (same_name(part, token)) return true;
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return false;
}

void append_header(std::string& head, std::string_view name, std::string_view value) {
  const bool is_token = !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return kToken[static_cast<unsigned char>(c)];
  });
  if (!is_token) py::raise(PyExc_ValueError, "Invalid HTTP header name.");
  if (value.find_first_of(std::string_view("\r\n\0", 3)) != std::string_view::npos)
    py::raise(PyExc_ValueError, "Invalid HTTP header value.");
  const std::size_t begin = head.size();
  head += name;
  std::transform(head.begin() + static_cast<std::ptrdiff_t>(begin), head.end(),
                 head.begin() + static_cast<std::ptrdiff_t>(begin), lower);
  head += ": ";
  head += value;
  head += "\r\n";
}

bool MessageType::is(PyObject* name) const {
  return type == name || PyUnicode_Compare(type, name) == 0;
}

void MessageType::unexpected(const char* expected) const {
  PyErr_Format(PyExc_RuntimeError, "Expected ASGI message '%s', but got '%U'.", expected, type);
  py::throw_fetched();
}

void MessageType::unexpected_after_end() const {
  PyErr_Format(PyExc_RuntimeError,
               "Unexpected ASGI message '%U' sent, after response already completed.", type);
  py::throw_fetched();
}

MessageType message_type(State& state, PyObject* message) {
  if (!PyDict_Check(message)) py::raise(PyExc_TypeError, "an ASGI message is a dict");
  PyObject* type = item_of(message, state.names.type);
  if (type == nullptr) py::raise(PyExc_KeyError, "type");
  if (!PyUnicode_Check(type)) py::raise(PyExc_TypeError, "the type of an ASGI message is a str");
  return {state, type};
}

PyObject* item_of(PyObject* message, PyObject* key) {
  PyObject* item = PyDict_GetItemWithError(message, key);
  if (item == nullptr && PyErr_Occurred() != nullptr) py::throw_fetched();
  return item == Py_None ? nullptr : item;
}

int status_of(State& state, PyObject* message) {
  PyObject* status = item_of(message, state.names.status);
  if (status == nullptr) py::raise(PyExc_KeyError, "status");
  const py::Ref number = py::check(PyNumber_Index(status));  // http.HTTPStatus, too
  const long value = PyLong_AsLong(number.get());
  if (value == -1 && PyErr_Occurred() != nullptr) py::throw_fetched();
  if (value < 100 || value > 999) py::raise(PyExc_ValueError, "status is from 100 to 999");
  return static_cast<int>(value);
}

}  // namespace web
