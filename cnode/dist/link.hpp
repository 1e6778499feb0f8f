// Link: one distribution connection to one peer, from the end of the handshake until it closes.
//
//   socket ── read ──▶ frames ──▶ LinkHandler (reactor)
//   socket ◀── write ── SendQueue ◀── send (any thread)
//
// The link never stops reading: a BEAM's ticker blocks for ever on a hidden peer that does. It
// ticks every quarter of the tick time when nothing else was sent, and gives the peer up after 1.25
// tick times of silence.
#pragma once

#include <asio/io_context.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "cnode/base/memory_budget.hpp"
#include "cnode/dist/flags.hpp"
#include "cnode/dist/handshake.hpp"
#include "cnode/dist/message.hpp"
#include "cnode/dist/send_queue.hpp"

namespace dist {

class Link;
using LinkPtr = std::shared_ptr<Link>;

// What the node does with a link. Every call comes on the reactor thread.
class LinkHandler {
 public:
  virtual ~LinkHandler() = default;
  // One frame, its length taken off. `whole_size` exceeds frame.size() when the frame was over the
  // limit: then only its beginning is here, enough for the control tuple.
  virtual void on_frame(Link& link, etf::Bytes frame, std::size_t whole_size) = 0;
  virtual void on_link_closed(Link& link, const std::string& reason) = 0;
};

class Link : public std::enable_shared_from_this<Link> {
 public:
  Link(std::uint64_t id, PeerInfo peer, int descriptor);
  virtual ~Link() = default;
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  std::uint64_t id() const { return id_; }
  const PeerInfo& peer() const { return peer_; }
  // What its peer has in flight; nullptr where nobody counts. Set before it starts.
  const std::shared_ptr<base::MemoryBudget>& budget() const { return budget_; }
  void set_budget(std::shared_ptr<base::MemoryBudget> budget) { budget_ = std::move(budget); }
  bool has(std::uint64_t flag) const { return (peer_.flags & flag) != 0; }

  void send(Message message);                     // any thread; dropped when the link is gone
  void send_all(std::vector<Message>& messages);  // likewise; empties the vector
  void close(std::string reason);                 // any thread; once

  bool closed() const { return closed_.load(std::memory_order_acquire); }
  // Asked to close: what the peer sent behind the offending frame is not looked at any more.
  bool closing() const { return closing_.load(std::memory_order_acquire); }
  bool flushed() const { return queue_.idle(); }
  std::uint64_t bytes_sent() const { return queue_.bytes_sent(); }
  std::uint64_t ticks_sent() const { return ticks_sent_.load(std::memory_order_relaxed); }
  std::uint64_t ticks_received() const { return ticks_received_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_received() const { return bytes_received_.load(std::memory_order_relaxed); }

 private:
  void after(SendQueue::Pushed pushed);

 protected:
  virtual void wake_writer() = 0;                      // any thread
  virtual void request_close(std::string reason) = 0;  // any thread

  std::atomic<bool> closed_{false};
  std::atomic<bool> closing_{false};
  std::atomic<std::uint64_t> bytes_received_{0};
  std::atomic<std::uint64_t> ticks_sent_{0};
  std::atomic<std::uint64_t> ticks_received_{0};
  SendQueue queue_;

 private:
  const std::uint64_t id_;
  const PeerInfo peer_;
  std::shared_ptr<base::MemoryBudget> budget_;
};

}  // namespace dist
