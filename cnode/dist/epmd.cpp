#include "cnode/dist/epmd.hpp"

#include <asio/buffer.hpp>
#include <asio/connect.hpp>
#include <asio/read.hpp>
#include <asio/write.hpp>

#include <array>
#include <memory>

#include "cnode/base/fork.hpp"
#include "cnode/base/log.hpp"
#include "cnode/dist/async.hpp"

namespace dist {

using asio::ip::tcp;
using base::Error;
using base::ErrorCode;

namespace {

constexpr std::chrono::seconds kRetry{1};
constexpr std::chrono::seconds kRefusedFor{5};
constexpr std::chrono::milliseconds kDeadline{5'000};

// Closes the socket when time is up; the operation under way then ends with an error.
class Deadline {
 public:
  Deadline(tcp::socket& socket, std::chrono::milliseconds limit)
      : state_(std::make_shared<bool>(true)), timer_(socket.get_executor(), limit) {
    timer_.async_wait([alive = state_, &socket](asio::error_code error) {
      if (error || !*alive) return;
      asio::error_code ignored;
      socket.close(ignored);
    });
  }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;
  ~Deadline() { *state_ = false; }

 private:
  std::shared_ptr<bool> state_;
  asio::steady_timer timer_;
};

}  // namespace

asio::awaitable<base::Status> connect(tcp::socket& socket, std::string host, std::uint16_t port,
                                      std::chrono::milliseconds deadline) {
  tcp::resolver resolver(socket.get_executor());
  auto [resolve_error, endpoints] =
      co_await resolver.async_resolve(host, std::to_string(port), as_result);
  if (resolve_error) co_return Error{ErrorCode::kRefused, 0, host + ": " + resolve_error.message()};
  const Deadline limit(socket, deadline);
  auto [error, endpoint] = co_await asio::async_connect(socket, endpoints, as_result);
  if (error)
    co_return Error{ErrorCode::kRefused, 0,
                    host + ":" + std::to_string(port) + ": " + error.message()};
  co_return base::Done{};
}

EpmdClient::EpmdClient(asio::any_io_executor executor, EpmdAddress address)
    : address_(std::move(address)), socket_(executor), pause_(executor) {}

asio::awaitable<base::Status> EpmdClient::register_once(const std::string& alive,
                                                        std::uint16_t port) {
  socket_ = tcp::socket(socket_.get_executor());
  auto connected = co_await connect(socket_, address_.host, address_.port, kDeadline);
  reached_ = connected.ok();
  if (!connected) co_return connected;
  base::close_in_children(socket_.native_handle());
  auto request = encode_alive_request(alive, port);
  if (!request) co_return request.error();
  auto [write_error, written] =
      co_await asio::async_write(socket_, asio::buffer(*request), as_result);
  if (write_error) co_return Error{ErrorCode::kClosed, 0, write_error.message()};

  std::array<std::uint8_t, 16> reply{};
  std::size_t size = 0;
  const Deadline limit(socket_, kDeadline);
  for (;;) {
    auto parsed = parse_alive_reply({reply.data(), size});
    if (parsed) {
      if (parsed->result != 0) co_return Error{ErrorCode::kRefused, 0, "the name is taken"};
      co_return base::Done{};
    }
    if (parsed.error().code != ErrorCode::kTruncated || size == reply.size())
      co_return parsed.error();
    auto room = asio::buffer(reply.data() + size, reply.size() - size);
    auto [error, count] = co_await socket_.async_read_some(room, as_result);
    if (error) co_return Error{ErrorCode::kClosed, 0, error.message()};
    size += count;
  }
}

asio::awaitable<void> EpmdClient::keep_registered(std::string alive, std::uint16_t port,
                                                  std::function<void()> refused, Absent absent) {
  bool ever = false;
  auto next_report = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point refused_since{};
  while (!stopped_) {
    auto status = co_await register_once(alive, port);
    const auto now = std::chrono::steady_clock::now();
    if (status) {
      spdlog::info("registered with epmd at {}:{} as {} on port {}", address_.host, address_.port,
                   alive, port);
      ever = true;
      registered_ = true;
      refused_since = {};
      std::array<std::uint8_t, 64> ignored{};
      for (;;) {  // epmd says nothing more; the read ends when the connection does
        auto [error, count] = co_await socket_.async_read_some(asio::buffer(ignored), as_result);
        if (error) break;
      }
      registered_ = false;
      if (stopped_) co_return;
      spdlog::warn("lost epmd at {}:{}; registering again as soon as it is back", address_.host,
                   address_.port);
      next_report = now + std::chrono::minutes(1);
    } else {
      if (stopped_ || (!reached_ && absent && absent())) co_return;
      const bool taken = status.error().detail == "the name is taken";
      if (taken && refused_since == std::chrono::steady_clock::time_point{}) refused_since = now;
      if (taken && !ever && now - refused_since >= kRefusedFor) {
        refused();
        co_return;
      }
      if (now >= next_report) {
        spdlog::warn("not registered with epmd ({}); trying again every {} s",
                     status.error().detail, kRetry.count());
        next_report = now + std::chrono::minutes(1);
      }
    }
    asio::error_code ignored;
    socket_.close(ignored);
    pause_.expires_after(kRetry);
    auto [error] = co_await pause_.async_wait(as_result);
    (void)error;
  }
}

void EpmdClient::stop() {
  stopped_ = true;
  pause_.cancel();
  asio::error_code ignored;
  socket_.close(ignored);
}

asio::awaitable<base::Result<std::uint16_t>> EpmdClient::look_up(std::string host,
                                                                 std::uint16_t epmd_port,
                                                                 std::string alive) {
  tcp::socket socket(co_await asio::this_coro::executor);
  auto connected = co_await connect(socket, host, epmd_port, kDeadline);
  if (!connected) co_return connected.error();
  auto request = encode_port_request(alive);
  if (!request) co_return request.error();
  const Deadline limit(socket, kDeadline);
  auto [write_error, written] =
      co_await asio::async_write(socket, asio::buffer(*request), as_result);
  if (write_error) co_return Error{ErrorCode::kClosed, 0, write_error.message()};
  std::array<std::uint8_t, kMaxEpmdReply> reply{};
  std::size_t size = 0;
  for (;;) {
    auto parsed = parse_port_reply({reply.data(), size});
    if (parsed) {
      if (parsed->result != 0)
        co_return Error{ErrorCode::kRefused, 0, "epmd at " + host + " does not know " + alive};
      co_return parsed->port;
    }
    if (parsed.error().code != ErrorCode::kTruncated || size == reply.size())
      co_return parsed.error();
    auto room = asio::buffer(reply.data() + size, reply.size() - size);
    auto [error, count] = co_await socket.async_read_some(room, as_result);
    if (error) co_return Error{ErrorCode::kClosed, 0, "epmd at " + host + ": " + error.message()};
    size += count;
  }
}

}  // namespace dist
