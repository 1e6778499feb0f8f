#include "cnode/web/scope.hpp"

#include <algorithm>
#include <array>

#include "cnode/web/response.hpp"

namespace web {
namespace {

constexpr std::array kHeaderNames = {"accept",
                                     "accept-charset",
                                     "accept-encoding",
                                     "accept-language",
                                     "authorization",
                                     "cache-control",
                                     "connection",
                                     "content-encoding",
                                     "content-length",
                                     "content-type",
                                     "cookie",
                                     "date",
                                     "dnt",
                                     "expect",
                                     "forwarded",
                                     "host",
                                     "if-match",
                                     "if-modified-since",
                                     "if-none-match",
                                     "if-range",
                                     "if-unmodified-since",
                                     "keep-alive",
                                     "origin",
                                     "pragma",
                                     "priority",
                                     "range",
                                     "referer",
                                     "sec-ch-ua",
                                     "sec-ch-ua-mobile",
                                     "sec-ch-ua-platform",
                                     "sec-fetch-dest",
                                     "sec-fetch-mode",
                                     "sec-fetch-site",
                                     "sec-fetch-user",
                                     "sec-websocket-extensions",
                                     "sec-websocket-key",
                                     "sec-websocket-protocol",
                                     "sec-websocket-version",
                                     "te",
                                     "traceparent",
                                     "tracestate",
                                     "transfer-encoding",
                                     "upgrade",
                                     "upgrade-insecure-requests",
                                     "user-agent",
                                     "via",
                                     "x-forwarded-for",
                                     "x-forwarded-host",
                                     "x-forwarded-port",
                                     "x-forwarded-proto",
                                     "x-real-ip",
                                     "x-request-id"};
constexpr std::array kMethods = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"};

int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

py::Ref known_or(const std::unordered_map<std::string_view, PyObject*>& known,
                 std::string_view text, py::Ref (*make)(std::string_view)) {
  const auto found = known.find(text);
  return found == known.end() ? make(text) : py::Ref::borrow(found->second);
}

py::Ref headers_of(State& state, const RequestParser::Head& head) {
  py::Ref list = py::check(PyList_New(static_cast<Py_ssize_t>(head.headers.size())));
  Py_ssize_t index = 0;
  for (const auto& header : head.headers) {
    py::Ref name = known_or(*state.header_names, header.name, bytes_from);
    py::Ref value = bytes_from(header.value);
    PyObject* pair = py::check(PyTuple_New(2)).release();
    PyTuple_SET_ITEM(pair, 0, name.release());
    PyTuple_SET_ITEM(pair, 1, value.release());
    PyList_SET_ITEM(list.get(), index++, pair);
  }
  return list;
}

py::Ref subprotocols_of(const RequestParser::Head& head) {
  py::Ref list = py::check(PyList_New(0));
  for (const auto& header : head.headers) {
    if (header.name != "sec-websocket-protocol") continue;
    std::string_view rest = header.value;
    while (!rest.empty()) {
      const std::size_t end = std::min(rest.find(','), rest.size());
      std::string_view one = rest.substr(0, end);
      rest.remove_prefix(std::min(end + 1, rest.size()));
      while (!one.empty() && (one.front() == ' ' || one.front() == '\t')) one.remove_prefix(1);
      while (!one.empty() && (one.back() == ' ' || one.back() == '\t')) one.remove_suffix(1);
      if (one.empty()) continue;
      py::check_status(PyList_Append(list.get(), text_from(one).get()));
    }
  }
  return list;
}

}  // namespace

Target parts_of(std::string_view target) {
  target = target.substr(0, target.find('#'));
  const std::size_t query = target.find('?');
  Target parts{target.substr(0, query),
               query == std::string_view::npos ? std::string_view{} : target.substr(query + 1)};
  const std::size_t scheme = parts.path.find("://");
  if (!parts.path.starts_with('/') && scheme != std::string_view::npos) {
    const std::size_t path = parts.path.find('/', scheme + 3);
    parts.path = path == std::string_view::npos ? std::string_view("/") : parts.path.substr(path);
  }
  return parts;
}

std::string percent_decoded(std::string_view text) {
  std::string decoded;
  decoded.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    const int high = text[i] == '%' && i + 2 < text.size() ? digit(text[i + 1]) : -1;
    const int low = high < 0 ? -1 : digit(text[i + 2]);
    if (low < 0) {
      decoded += text[i];
      continue;
    }
    decoded += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return decoded;
}

bool is_websocket(const RequestParser::Head& head) {
  return head.upgrade && head.method == "GET" && head.minor == 1 && !head.has_body &&
         std::any_of(head.headers.begin(), head.headers.end(), [](const auto& header) {
           return header.name == "upgrade" && has_token(header.value, "websocket");
         });
}

int websocket_request(const RequestParser::Head& head, SocketExchange::Request& request) {
  bool right_version = false;
  int keys = 0;
  for (const auto& [name, value] : head.headers) {
    if (name == "sec-websocket-version") right_version = value == "13";
    if (name == "sec-websocket-key") {
      request.key = value;
      ++keys;
    }
    if (name == "sec-websocket-extensions") {
      if (!request.extensions.empty()) request.extensions += ',';
      request.extensions += value;
    }
  }
  if (!right_version) return 426;
  // Sixteen bytes in Base64.
  const bool valid = keys == 1 && request.key.size() == 24 && request.key.ends_with("==") &&
                     std::all_of(request.key.begin(), request.key.end() - 2, [](char c) {
                       return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                              (c >= '0' && c <= '9') || c == '+' || c == '/';
                     });
  return valid ? 0 : 400;
}

py::Ref make_scope(State& state, const ScopeParts& parts) {
  const auto& names = state.names;
  py::Ref scope = py::check(PyDict_New());
  PyObject* dict = scope.get();
  const auto set = [&](PyObject* key, PyObject* value) {
    py::check_status(PyDict_SetItem(dict, key, value));
  };
  set(names.type, parts.websocket ? names.websocket : names.http);
  set_item(dict, names.asgi, py::check(PyDict_Copy(state.asgi)));
  set(names.http_version, parts.head.minor == 1 ? state.version_11 : state.version_10);
  if (!parts.websocket)
    set_item(dict, names.method, known_or(*state.methods, parts.head.method, text_from));
  set(names.scheme, parts.scheme);
  set_item(dict, names.path,
           py::check(PyUnicode_DecodeUTF8(parts.path.data(),
                                          static_cast<Py_ssize_t>(parts.path.size()), "replace")));
  set_item(dict, names.raw_path, bytes_from(parts.target.path));
  set_item(dict, names.query_string, bytes_from(parts.target.query));
  set(names.root_path, parts.application.root_path);
  set_item(dict, names.headers, headers_of(state, parts.head));
  set(names.client, parts.client);
  set(names.server, parts.server);
  if (parts.application.state != nullptr)
    set_item(dict, names.state, py::check(PyDict_Copy(parts.application.state)));
  py::Ref extensions = py::check(PyDict_New());
  if (parts.websocket) {
    set_item(dict, names.subprotocols, subprotocols_of(parts.head));
    set_item(extensions.get(), names.websocket_response, py::check(PyDict_New()));
  }
  set_item(dict, names.extensions, extensions);
  return scope;
}

void fill_names(State& state) {
  for (const char* name : kHeaderNames)
    state.header_names->emplace(name, bytes_from(name).release());
  for (const char* method : kMethods)
    state.methods->emplace(method, py::check(PyUnicode_InternFromString(method)).release());
}

}  // namespace web
