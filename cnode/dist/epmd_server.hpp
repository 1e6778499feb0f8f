// EpmdServer: the port mapper of a host or pod that has no epmd of its own.
//
//   node here ── ALIVE2 ──▶ [ name → port ] ◀── PORT2, NAMES ── anybody who reaches us
//
// Speaks epmd's protocol, so that BEAMs beside it register as they always do. Only those on this
// host may; orders to end it or to dump what it knows are not obeyed. Everything runs on the
// reactor.
#pragma once

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/ip/tcp.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cnode/base/result.hpp"
#include "cnode/dist/epmd_protocol.hpp"

namespace dist {

class EpmdServer {
 public:
  struct Limits {
    std::size_t clients = 1'024;  // with the nodes that are registered; more are not accepted
    std::chrono::milliseconds request{5'000};
  };

  EpmdServer(asio::any_io_executor executor, Limits limits);
  explicit EpmdServer(asio::any_io_executor executor) : EpmdServer(std::move(executor), Limits{}) {}
  EpmdServer(const EpmdServer&) = delete;
  EpmdServer& operator=(const EpmdServer&) = delete;

  // Listens on these addresses and the loopback's; those that the machine lacks are passed over,
  // one that is taken is an error.
  base::Status start(const std::vector<asio::ip::address>& addresses, std::uint16_t port);
  // This node itself. Not for a name that somebody holds.
  base::Status add_own(const std::string& alive, std::uint16_t port);
  // Others stay registered, and may still be asked for, until we end.
  void remove_own(const std::string& alive) { nodes_.erase(alive); }
  void stop();

  std::uint16_t port() const { return port_; }
  // Any thread.
  bool serving() const { return serving_.load(std::memory_order_relaxed); }

 private:
  using Socket = asio::ip::tcp::socket;

  asio::awaitable<void> accept_loop(asio::ip::tcp::acceptor& acceptor);
  asio::awaitable<void> serve(std::shared_ptr<Socket> socket);
  bool is_local(Socket& socket) const;

  const asio::any_io_executor executor_;
  const Limits limits_;
  std::uint16_t port_ = 0;
  std::list<asio::ip::tcp::acceptor> acceptors_;
  std::map<std::string, AliveRequest> nodes_;
  std::list<std::weak_ptr<Socket>> clients_;
  std::atomic<bool> serving_{false};
};

}  // namespace dist
