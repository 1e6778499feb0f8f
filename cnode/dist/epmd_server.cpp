#include "cnode/dist/epmd_server.hpp"

#include <asio/buffer.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/ip/v6_only.hpp>
#include <asio/read.hpp>
#include <asio/write.hpp>

#include <array>
#include <set>
#include <utility>

#include "cnode/base/fork.hpp"
#include "cnode/base/log.hpp"
#include "cnode/base/random.hpp"
#include "cnode/dist/async.hpp"
#include "cnode/etf/reader.hpp"

namespace dist {

using asio::ip::address;
using asio::ip::tcp;
using base::Error;
using base::ErrorCode;

namespace {

// Whoever listens on all addresses has the others of that family, too.
std::set<address> to_listen_on(const std::vector<address>& wanted) {
  std::set<address> all(wanted.begin(), wanted.end());
  all.insert(asio::ip::address_v4::loopback());
  all.insert(asio::ip::address_v6::loopback());
  for (const address& any :
       {address(asio::ip::address_v4::any()), address(asio::ip::address_v6::any())}) {
    if (all.count(any) == 0) continue;
    for (auto at = all.begin(); at != all.end();)
      at = *at != any && at->is_v4() == any.is_v4() ? all.erase(at) : std::next(at);
  }
  return all;
}

bool lacking(const asio::error_code& error) {
  return error == std::errc::address_not_available ||
         error == std::errc::address_family_not_supported;
}

}  // namespace

EpmdServer::EpmdServer(asio::any_io_executor executor, Limits limits)
    : executor_(std::move(executor)), limits_(limits) {}

base::Status EpmdServer::start(const std::vector<address>& addresses, std::uint16_t port) {
  acceptors_.clear();
  port_ = port;
  for (const address& one : to_listen_on(addresses)) {
    tcp::acceptor acceptor(executor_);
    const tcp::endpoint endpoint(one, port_);
    asio::error_code error;
    acceptor.open(endpoint.protocol(), error);
    if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error && one.is_v6()) acceptor.set_option(asio::ip::v6_only(true), error);
    if (!error) acceptor.bind(endpoint, error);
    if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (lacking(error)) continue;
    if (error) {
      acceptors_.clear();
      return Error{ErrorCode::kRefused, 0,
                   one.to_string() + " port " + std::to_string(port_) + ": " + error.message()};
    }
    base::close_in_children(acceptor.native_handle());
    port_ = acceptor.local_endpoint().port();
    acceptors_.push_back(std::move(acceptor));
  }
  if (acceptors_.empty()) return Error{ErrorCode::kRefused, 0, "no address to listen on"};
  for (auto& acceptor : acceptors_)
    asio::co_spawn(executor_, accept_loop(acceptor), asio::detached);
  serving_ = true;
  return base::Done{};
}

base::Status EpmdServer::add_own(const std::string& alive, std::uint16_t port) {
  AliveRequest node;
  node.name = alive;
  node.port = port;
  if (!nodes_.try_emplace(alive, std::move(node)).second)
    return Error{ErrorCode::kRefused, 0, "the name is taken"};
  return base::Done{};
}

void EpmdServer::stop() {
  serving_ = false;
  asio::error_code ignored;
  for (auto& acceptor : acceptors_) acceptor.close(ignored);
  for (auto& client : clients_) {
    if (auto socket = client.lock()) socket->close(ignored);
  }
}

asio::awaitable<void> EpmdServer::accept_loop(tcp::acceptor& acceptor) {
  for (;;) {
    auto [error, socket] = co_await acceptor.async_accept(as_result);
    if (!serving_ || error == asio::error::operation_aborted) co_return;
    if (error) {
      co_await sleep_for(std::chrono::milliseconds(100));
      continue;
    }
    clients_.remove_if([](const auto& client) { return client.expired(); });
    if (clients_.size() >= limits_.clients) continue;  // closed with its end of scope
    auto client = std::make_shared<Socket>(std::move(socket));
    clients_.push_back(client);
    asio::co_spawn(executor_, serve(std::move(client)), asio::detached);
  }
}

bool EpmdServer::is_local(Socket& socket) const {
  asio::error_code error;
  const auto theirs = socket.remote_endpoint(error).address();
  if (error) return false;
  return theirs.is_loopback() || theirs == socket.local_endpoint(error).address();
}

asio::awaitable<void> EpmdServer::serve(std::shared_ptr<Socket> socket) {
  asio::steady_timer deadline(executor_, limits_.request);
  deadline.async_wait([held = std::weak_ptr<Socket>(socket)](asio::error_code error) {
    asio::error_code ignored;
    if (auto late = error ? nullptr : held.lock()) late->close(ignored);
  });
  std::array<std::uint8_t, kMaxEpmdRequest> room{};
  auto head = asio::buffer(room.data(), 2);
  auto [head_error, head_size] = co_await asio::async_read(*socket, head, as_result);
  if (head_error) co_return;
  const std::size_t size = etf::read_u16(room.data());
  if (size == 0 || size > room.size()) co_return;
  auto body = asio::buffer(room.data(), size);
  auto [body_error, body_size] = co_await asio::async_read(*socket, body, as_result);
  if (body_error) co_return;
  auto request = parse_epmd_request({room.data(), size});
  if (!request) co_return;

  std::vector<std::uint8_t> reply;
  bool registered = false;
  switch (request->kind) {
    case EpmdRequest::Kind::kAlive: {
      if (!is_local(*socket)) co_return;
      registered = nodes_.try_emplace(request->alive.name, request->alive).second;
      std::optional<std::uint32_t> creation;
      if (registered) creation = base::secure_random_u32() | 4;
      reply = encode_alive_reply(request->alive, creation);
      break;
    }
    case EpmdRequest::Kind::kPort: {
      const auto found = nodes_.find(request->alive.name);
      reply = encode_port_reply(found == nodes_.end() ? nullptr : &found->second);
      break;
    }
    case EpmdRequest::Kind::kNames: {
      std::vector<const AliveRequest*> all;
      for (const auto& entry : nodes_) all.push_back(&entry.second);
      reply = encode_names_reply(port_, all);
      break;
    }
    case EpmdRequest::Kind::kOther:
      co_return;
  }
  auto [write_error, written] = co_await asio::async_write(*socket, asio::buffer(reply), as_result);
  deadline.cancel();
  if (!registered) co_return;
  if (!write_error) {
    spdlog::info("epmd: {} is here, on port {}", request->alive.name, request->alive.port);
    // A node says nothing more; it is registered until its connection ends.
    asio::error_code ended;
    while (!ended) {
      auto [error, count] = co_await socket->async_read_some(asio::buffer(room), as_result);
      ended = error;
    }
    spdlog::info("epmd: {} is gone", request->alive.name);
  }
  nodes_.erase(request->alive.name);
}

}  // namespace dist
