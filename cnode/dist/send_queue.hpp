// SendQueue: everything that waits to go out on one link.
//
//   any thread ── push ──▶ small: m1 m2 m3 …        ┐
//                          large: A ▒▒▒ B ▒▒▒▒▒ …   ┴─ take ──▶ the link's writer (reactor)
//
// When nothing waits and nobody writes, push writes to the socket itself, so an idle link costs no
// thread hop. Otherwise messages pile up and the writer takes many at once. A message over
// kFragmentSize leaves in fragments, one per turn and large message, so small ones pass in between;
// messages that share its lane wait behind it.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "cnode/dist/frame.hpp"
#include "cnode/dist/message.hpp"

namespace dist {

inline constexpr std::size_t kMaxQueuedBytes = std::size_t{1}
                                               << 30;  // then the peer is dropped: it does not read

class SendQueue {
 public:
  enum class Pushed {
    kDone,        // written, or the writer is already on its way
    kWake,        // the caller must wake the writer
    kClosed,      // the link is gone; the message was dropped, as a signal to a lost node is
    kOverBudget,  // likewise; the peer has stopped reading, the caller closes the link
  };

  // `descriptor` is the socket push may write to directly, or -1 when only the writer can (TLS).
  SendQueue(int descriptor, bool fragments) : descriptor_(descriptor), fragments_(fragments) {}
  SendQueue(const SendQueue&) = delete;
  SendQueue& operator=(const SendQueue&) = delete;

  Pushed push(Message message);  // any thread
  Pushed push_all(
      std::vector<Message>& messages);  // likewise, in one write if it can be; empties the vector
  Pushed push_tick();                   // any thread; nothing when there is traffic anyway

  // The writer's side: what to write next. False when nothing waits; push says when to come again.
  struct Batch {
    std::vector<iovec> parts;
    std::size_t bytes = 0;

   private:
    friend class SendQueue;
    struct Held {
      etf::Buffer buffer;
      std::size_t begin;
    };
    std::vector<Held> held;
    std::vector<std::shared_ptr<void>> kept;
    std::deque<std::array<std::uint8_t, 24>> heads;
  };
  bool take(Batch& batch);

  void close();  // any thread; after it no thread touches the descriptor
  bool idle() const;
  std::uint64_t bytes_sent() const;

 private:
  struct Large {
    Message message;
    std::uint64_t sequence = 0;
    std::uint64_t fragments_left = 0;
    std::uint64_t not_before = 0;  // small messages that were pushed earlier, and leave earlier
    std::size_t offset = Message::kHeadroom;  // of the next byte to send
    bool first = true;
    std::deque<Message> followers;
  };

  bool may_write() const;
  void enqueue(Message message);
  void enqueue_large(Message message);
  void enqueue_small(Message message);
  void write_directly();
  void take_fragment(Batch& batch, const std::shared_ptr<Large>& large);
  void finish_large(const std::shared_ptr<Large>& large);
  std::size_t write_head(Message& message);  // returns where the frame begins
  Pushed wake();

  mutable std::mutex mutex_;
  const int descriptor_;
  const bool fragments_;
  bool closed_ = false;
  bool writing_ = false;       // the writer holds a batch
  bool wake_pending_ = false;  // somebody was told to wake the writer
  std::deque<Batch::Held> small_;
  std::uint64_t small_pushed_ = 0;
  std::uint64_t small_taken_ = 0;
  std::list<std::shared_ptr<Large>> large_;
  std::unordered_map<std::uint64_t, std::shared_ptr<Large>> lanes_;
  std::uint64_t next_sequence_ = 1;
  std::size_t queued_bytes_ = 0;
  std::uint64_t bytes_sent_ = 0;
};

}  // namespace dist
