// Connection: a Link over one transport. Lives as long as its coroutines; every member belongs to
// the reactor thread, but for the send queue, which has a lock of its own.
#pragma once

#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/post.hpp>
#include <asio/write.hpp>

#include <algorithm>
#include <cstring>
#include <utility>

#include "cnode/base/log.hpp"
#include "cnode/dist/async.hpp"
#include "cnode/dist/link.hpp"
#include "cnode/etf/reader.hpp"

namespace dist {

struct LinkLimits {
  std::chrono::milliseconds ticktime{60'000};
  std::size_t max_frame = etf::kMaxMessage + 64 * 1024;
};

template <class Transport>
class Connection final : public Link {
 public:
  using Stream = typename Transport::Stream;

  Connection(std::uint64_t id, PeerInfo peer, Stream stream, LinkHandler& handler,
             LinkLimits limits)
      : Link(id, std::move(peer), Transport::direct_descriptor(stream)),
        stream_(std::move(stream)),
        tick_timer_(stream_.get_executor()),
        handler_(handler),
        limits_(limits) {}

  // Starts reading and ticking. `early` is what the peer sent right behind its last handshake
  // packet.
  void start(etf::Bytes early) {
    input_.append(early);
    last_read_ = std::chrono::steady_clock::now();
    asio::co_spawn(stream_.get_executor(), read_loop(self()), asio::detached);
    asio::co_spawn(stream_.get_executor(), tick_loop(self()), asio::detached);
  }

 private:
  static constexpr std::size_t kReadSize = 256 * 1024;
  static constexpr std::size_t kHeadKept =
      64 * 1024;  // of a frame over the limit: its control tuple

  using Self = std::shared_ptr<Connection>;
  Self self() { return std::static_pointer_cast<Connection>(shared_from_this()); }

  // Coroutines take their owner as an argument: a capturing coroutine lambda would lose its
  // captures.
  static asio::awaitable<void> read_loop(Self link) {
    if (!link->take_frames()) co_return;
    for (;;) {
      std::uint8_t* room = link->input_.prepare(
          std::max(kReadSize - std::min(kReadSize, link->input_.size()), kReadSize / 4));
      const std::size_t size = link->input_.capacity() - link->input_.size();
      auto [error, count] =
          co_await link->stream_.async_read_some(asio::buffer(room, size), as_result);
      if (error) {
        link->finish(Transport::ended(error) ? "closed by the peer" : error.message());
        co_return;
      }
      link->input_.commit(count);
      link->bytes_received_.fetch_add(count, std::memory_order_relaxed);
      link->last_read_ = std::chrono::steady_clock::now();
      if (!link->take_frames()) co_return;
    }
  }

  static asio::awaitable<void> tick_loop(Self link) {
    using Clock = std::chrono::steady_clock;
    const Clock::duration quarter = link->limits_.ticktime / 4;
    const Clock::duration longest = 5 * quarter;
    std::uint64_t sent_before = 0;
    while (!link->closed()) {
      const auto left = link->last_read_ + longest - Clock::now();
      link->tick_timer_.expires_after(std::min(quarter, left));
      auto [error] = co_await link->tick_timer_.async_wait(as_result);
      if (error || link->closed()) co_return;
      const auto silence = Clock::now() - link->last_read_;
      if (silence >= longest) {
        link->finish(
            "nothing heard for " +
            std::to_string(std::chrono::duration_cast<std::chrono::seconds>(silence).count()) +
            " s");
        co_return;
      }
      const std::uint64_t sent = link->bytes_sent();
      if (sent == sent_before) link->tick(sent);
      sent_before = link->bytes_sent();
    }
  }

  void tick(std::uint64_t sent_before) {
    const SendQueue::Pushed pushed = queue_.push_tick();
    if (pushed == SendQueue::Pushed::kWake || bytes_sent() != sent_before)
      ticks_sent_.fetch_add(1, std::memory_order_relaxed);
    if (pushed == SendQueue::Pushed::kWake) write_some();
  }

  // Hands on every whole frame in the buffer. False when the link closed meanwhile.
  bool take_frames() {
    std::size_t at = 0;
    const std::uint8_t* bytes = input_.data();
    while (!closed() && !closing()) {
      const std::size_t left = input_.size() - at;
      if (skip_ > 0) {
        const std::size_t dropped = std::min(left, skip_);
        at += dropped;
        skip_ -= dropped;
        if (skip_ > 0) break;
        continue;
      }
      if (left < 4) break;
      const std::size_t length = etf::read_u32(bytes + at);
      if (length > limits_.max_frame) {
        const std::size_t kept = std::min(kHeadKept, length);
        if (left - 4 < kept) break;
        handler_.on_frame(*this, {bytes + at + 4, kept}, length);
        at += 4 + kept;
        skip_ = length - kept;
        continue;
      }
      if (left - 4 < length) break;
      if (length > 0)
        handler_.on_frame(*this, {bytes + at + 4, length}, length);
      else
        ticks_received_.fetch_add(1, std::memory_order_relaxed);
      at += 4 + length;
    }
    if (closed() || closing()) return false;
    compact(at);
    return true;
  }

  // Keeps the unread tail at the front; gives memory back that one long frame needed.
  void compact(std::size_t read) {
    const std::size_t left = input_.size() - read;
    if (left == 0 && input_.capacity() > 4 * kReadSize) {
      input_ = etf::Buffer(kReadSize);
      return;
    }
    if (read > 0 && left > 0) std::memmove(input_.data(), input_.data() + read, left);
    input_.truncate(left);
  }

  void wake_writer() override {
    asio::post(stream_.get_executor(), [link = self()] { link->write_some(); });
  }

  void write_some() {
    if (writing_ || closed()) return;
    if (!queue_.take(batch_)) return;
    writing_ = true;
    gather();
    asio::async_write(stream_, buffers_, [link = self()](asio::error_code error, std::size_t) {
      link->writing_ = false;
      if (error) return link->finish(error.message());
      link->write_some();
    });
  }

  void gather() {
    buffers_.clear();
    if constexpr (Transport::kGathers) {
      for (const iovec& part : batch_.parts) buffers_.emplace_back(part.iov_base, part.iov_len);
    } else {
      flat_.clear();
      for (const iovec& part : batch_.parts)
        flat_.append({static_cast<const std::uint8_t*>(part.iov_base), part.iov_len});
      buffers_.emplace_back(flat_.data(), flat_.size());
    }
  }

  void request_close(std::string reason) override {
    asio::post(stream_.get_executor(),
               [link = self(), why = std::move(reason)] { link->finish(why); });
  }

  void finish(const std::string& reason) {
    if (closed_.exchange(true, std::memory_order_acq_rel)) return;
    queue_.close();  // from here on no other thread writes to the descriptor
    asio::error_code ignored;
    auto& socket = Transport::socket(stream_);
    socket.shutdown(asio::ip::tcp::socket::shutdown_both, ignored);
    socket.close(ignored);
    tick_timer_.cancel();
    handler_.on_link_closed(*this, reason);
  }

  Stream stream_;
  asio::steady_timer tick_timer_;
  LinkHandler& handler_;
  const LinkLimits limits_;
  etf::Buffer input_{kReadSize};
  std::size_t skip_ = 0;  // bytes of an oversized frame still to be thrown away
  std::chrono::steady_clock::time_point last_read_;
  bool writing_ = false;
  SendQueue::Batch batch_;
  std::vector<asio::const_buffer> buffers_;
  etf::Buffer flat_;  // where the transport takes one buffer at a time
};

}  // namespace dist
