#include "cnode/main/admin.hpp"

#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/post.hpp>
#include <asio/read_until.hpp>
#include <asio/write.hpp>

#include <algorithm>
#include <charconv>
#include <utility>

#include "cnode/base/fork.hpp"
#include "cnode/base/log.hpp"
#include "cnode/dist/async.hpp"
#include "cnode/main/settings_file.hpp"

namespace node_main {
namespace {

using asio::ip::tcp;
using dist::as_result;
using namespace std::chrono_literals;

constexpr std::size_t kLongestHead = 8 * 1024;
constexpr std::size_t kMostOpen = 64;
constexpr auto kSocketTime = 5s;  // to send a head, to take an answer
constexpr auto kPythonTime = 500ms;

const char* phrase(int code) {
  switch (code) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 431:
      return "Request Header Fields Too Large";
    default:
      return "Service Unavailable";
  }
}

}  // namespace

Admin::Address Admin::address_of(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  Address address;
  address.host = colon == std::string::npos ? "127.0.0.1" : text.substr(0, colon);
  if (address.host.size() > 2 && address.host.front() == '[' && address.host.back() == ']')
    address.host = address.host.substr(1, address.host.size() - 2);
  const char* from = text.data() + (colon == std::string::npos ? 0 : colon + 1);
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(from, end, address.port);
  if (error != std::errc{} || stop != end || address.host.empty())
    throw ConfigError("admin: '" + text + "' is neither ADDRESS:PORT nor PORT");
  return address;
}

Admin::Admin(asio::io_context& reactor, Hooks hooks)
    : reactor_(reactor), hooks_(std::move(hooks)), acceptor_(reactor) {}

std::uint16_t Admin::start(const Address& address) {
  try {
    const tcp::endpoint endpoint(asio::ip::make_address(address.host), address.port);
    acceptor_.open(endpoint.protocol());
    acceptor_.set_option(tcp::acceptor::reuse_address(true));
    acceptor_.bind(endpoint);
    acceptor_.listen();
    base::close_in_children(acceptor_.native_handle());
    asio::co_spawn(
        reactor_, [self = shared_from_this()] { return self->accept_loop(); }, asio::detached);
    return acceptor_.local_endpoint().port();
  } catch (const asio::system_error& error) {
    throw ConfigError("admin: cannot listen on '" + address.host + "' port " +
                      std::to_string(address.port) + ": " + error.code().message());
  }
}

asio::awaitable<void> Admin::accept_loop() {
  for (;;) {
    auto [error, socket] = co_await acceptor_.async_accept(as_result);
    if (error) {  // no descriptors, for one
      co_await dist::sleep_for(100ms);
      continue;
    }
    if (open_ >= kMostOpen) continue;  // closed unheard
    auto held = std::make_shared<Socket>(std::move(socket));
    auto session = [self = shared_from_this(), held] { return self->serve(held); };
    asio::co_spawn(reactor_, std::move(session), asio::detached);
  }
}

asio::awaitable<void> Admin::serve(std::shared_ptr<Socket> held) {
  Socket& socket = *held;
  asio::steady_timer deadline(reactor_);
  const auto close_late = [&deadline, held] {
    deadline.expires_after(kSocketTime);
    deadline.async_wait([held](asio::error_code error) {
      asio::error_code ignored;
      if (!error) held->close(ignored);
    });
  };
  ++open_;
  close_late();
  std::string head;
  auto buffer = asio::dynamic_buffer(head, kLongestHead);
  auto [error, size] = co_await asio::async_read_until(socket, buffer, "\r\n\r\n", as_result);
  if (!error || error == asio::error::not_found) {
    deadline.cancel();
    Answer found;
    if (error)
      found = {431, "the head of a request may have 8 KiB\n"};
    else
      found = co_await answer(head);
    const std::string text = response(found, head.rfind("HEAD ", 0) != 0);
    close_late();
    auto [failed, written] = co_await asio::async_write(socket, asio::buffer(text), as_result);
    // What it still sends is read before the end: a socket closed over unread data resets, and the
    // answer may be lost with that.
    if (!failed) socket.shutdown(tcp::socket::shutdown_send, error);
    while (!failed) {
      auto [ended, more] = co_await socket.async_read_some(asio::buffer(head), as_result);
      failed = ended;
    }
  }
  deadline.cancel();
  --open_;
}

std::string Admin::response(const Answer& answer, bool with_body) {
  std::string text = "HTTP/1.1 " + std::to_string(answer.code) + " " + phrase(answer.code);
  text += "\r\nContent-Type: " + std::string(answer.type);
  text += "\r\nContent-Length: " + std::to_string(answer.body.size());
  if (answer.code == 405) text += "\r\nAllow: GET, HEAD";
  text += "\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n";
  if (with_body) text += answer.body;
  return text;
}

asio::awaitable<Admin::Answer> Admin::answer(std::string_view head) {
  Answer found;
  found.body = "ok\n";
  const std::string_view line = head.substr(0, head.find("\r\n"));
  const std::size_t method_end = line.find(' ');
  const std::size_t path_end = line.rfind(" HTTP/1.");
  if (method_end == line.npos || path_end == line.npos || path_end <= method_end ||
      line[method_end + 1] != '/') {
    found = {400, "this is no HTTP request\n"};
    co_return found;
  }
  const std::string_view method = line.substr(0, method_end);
  std::string_view path = line.substr(method_end + 1, path_end - method_end - 1);
  path = path.substr(0, path.find('?'));
  if (method != "GET" && method != "HEAD") {
    found = {405, "only GET and HEAD\n"};
  } else if (path == "/readyz") {
    found = co_await readiness();
  } else if (path == "/metrics") {
    found.body = hooks_.metrics();
    found.type = "text/plain; version=0.0.4; charset=utf-8";
  } else if (path != "/livez" && path != "/startupz") {
    found = {404, "there are /livez, /readyz, /startupz and /metrics\n"};
  }
  co_return found;
}

asio::awaitable<Admin::Answer> Admin::readiness() {
  const bool answers = co_await python_answers();
  std::vector<std::string> reasons = hooks_.not_ready();
  if (!answers) reasons.emplace_back("python does not answer");
  Answer found;
  found.code = reasons.empty() ? 200 : 503;
  for (const auto& reason : reasons) found.body += reason + "\n";
  if (reasons.empty()) found.body = "ok\n";
  co_return found;
}

// One question at a time is on its way, however many want to know.
asio::awaitable<bool> Admin::python_answers() {
  auto timer = std::make_shared<asio::steady_timer>(reactor_, kPythonTime);
  waiting_.push_back(timer);
  if (!std::exchange(asked_, true)) {
    hooks_.ask_python([weak = weak_from_this()] {
      auto self = weak.lock();
      if (!self) return;
      asio::post(self->reactor_, [self] {
        self->asked_ = false;
        for (const auto& each : std::exchange(self->waiting_, {})) each->cancel();
      });
    });
  }
  auto [error] = co_await timer->async_wait(as_result);
  const auto own = std::find(waiting_.begin(), waiting_.end(), timer);
  if (own != waiting_.end()) waiting_.erase(own);
  co_return error == asio::error::operation_aborted;
}

}  // namespace node_main
