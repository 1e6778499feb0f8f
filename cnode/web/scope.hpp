// The scope of a request: ASGI's description of it, a dict.
#pragma once

#include <string>
#include <string_view>

#include "cnode/web/exchange.hpp"
#include "cnode/web/request_parser.hpp"
#include "cnode/web/service.hpp"
#include "cnode/web/state.hpp"

namespace web {

// The parts of a request target: "/a%20b" and "x=1" of "/a%20b?x=1" and of
// "http://host/a%20b?x=1#y".
struct Target {
  std::string_view path;
  std::string_view query;
};
Target parts_of(std::string_view target);

// With %XX undone; what is no such thing stays as it is.
std::string percent_decoded(std::string_view text);

// Whether the request asks for a WebSocket.
bool is_websocket(const RequestParser::Head& head);
// Fills in what the handshake needs; 0, or the status to refuse with.
int websocket_request(const RequestParser::Head& head, SocketExchange::Request& request);

struct ScopeParts {
  const RequestParser::Head& head;
  const Target& target;
  const std::string& path;  // decoded
  const Service::Application& application;
  PyObject* scheme;
  PyObject* client;
  PyObject* server;
  bool websocket;
};
py::Ref make_scope(State& state, const ScopeParts& parts);

// What State keeps of names that everybody sends.
void fill_names(State& state);

}  // namespace web
