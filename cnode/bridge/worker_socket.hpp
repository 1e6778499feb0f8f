// WorkerSocket: one end of the socket between the node and a worker process.
//
//   any thread ── add ──▶ [ frames ] ── flush ──▶ socket      at once, while the other side takes
//   it;
//                                                             the reactor sends what is left
//   reactor ◀── frames, a turn's worth, then on_turn ◀── socket
//
// Nothing here blocks. What waits to be sent is bounded by whoever adds.
#pragma once

#include <asio/io_context.hpp>
#include <asio/local/stream_protocol.hpp>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "cnode/bridge/call.hpp"
#include "cnode/bridge/worker_frames.hpp"

namespace bridge {

class WorkerSocket : public std::enable_shared_from_this<WorkerSocket> {
 public:
  // All on the reactor.
  struct Hooks {
    std::function<bool(const FrameReader::Frame&)> on_frame;  // false: cannot be understood
    std::function<void()> on_turn;                            // after the frames of one turn
    std::function<void(const std::string& why)> on_closed;    // once; not after close()
  };

  // Owns the descriptor. No frame that arrives may be larger than `limit`.
  WorkerSocket(asio::io_context& reactor, int descriptor, std::size_t limit);
  WorkerSocket(const WorkerSocket&) = delete;
  WorkerSocket& operator=(const WorkerSocket&) = delete;

  // Reactor.
  void start(Hooks hooks);
  void read_what_is_there();  // at once, and without another turn's limit
  void close();

  // Any thread. Whole frames; `payload` keeps `tail`, which is sent behind them.
  void add(etf::Buffer frames, Payload payload = nullptr, etf::Bytes tail = {});
  void flush();
  bool dirty() const { return unsent() > 0; }
  std::size_t unsent() const { return unsent_.load(std::memory_order_relaxed); }

 private:
  struct Piece {
    etf::Buffer frames;
    Payload payload;
    etf::Bytes tail;
    std::size_t size() const { return frames.size() + tail.size(); }
  };
  enum class Left { kNothing, kSome, kEnded };

  void wait_readable();
  void on_readable();
  Left read_turn(std::size_t limit);
  bool hand_out();
  void fail(const std::string& why);
  bool write_some();  // lock held; false when the socket takes no more for now
  void wait_writable();

  asio::io_context& reactor_;
  asio::local::stream_protocol::socket socket_;
  Hooks hooks_;
  FrameReader reader_;
  bool closed_ = false;  // reactor

  std::mutex mutex_;
  std::deque<Piece> pieces_;
  std::size_t written_ = 0;  // of the first piece
  bool waiting_ = false;     // the reactor will go on
  bool broken_ = false;
  std::atomic<std::size_t> unsent_{0};
};

}  // namespace bridge
