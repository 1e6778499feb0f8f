// ChannelQueue: the messages of one channel on their way to its consumers.
//
//   reactor ── push(batch) ──▶ [ batch | batch ] ── take ──▶ whoever decodes ──▶ consumers
//                                                            (any number, served in order)
//
// Counts messages, not batches: `available` are those that came and were not handed out, `reserved`
// those among them that belong to waiters who were woken. A consumer that does not wait may only
// have what is not reserved; so each message goes to exactly one, and waiters are served in the
// order they came.
//
// Any thread. A Waiter is woken outside the lock.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "cnode/etf/writer.hpp"
#include "cnode/mailbox/credit.hpp"
#include "cnode/mailbox/fifo.hpp"

namespace mailbox {

// One message inside its batch's bytes; `cost` is what it counts against the bound.
struct Slice {
  std::uint32_t offset = 0;
  std::uint32_t size = 0;
  std::uint32_t cost = 0;
};

struct Batch {
  static constexpr Credit::Sender kUncounted = UINT32_MAX;  // it came outside the credit

  std::shared_ptr<const etf::Buffer> bytes;
  std::vector<Slice> slices;
  std::size_t next = 0;  // the first that is not taken
  Credit::Sender sender = kUncounted;

  std::size_t size() const { return slices.size() - next; }
};

class Waiter {
 public:
  virtual ~Waiter() = default;
  virtual void wake() = 0;  // any thread, under no lock of the queue

 private:
  friend class ChannelQueue;
  enum class State : std::uint8_t { kIdle, kWaiting, kGranted } state_ = State::kIdle;
};
using WaiterPtr = std::shared_ptr<Waiter>;

class ChannelQueue {
 public:
  ChannelQueue() = default;
  ChannelQueue(const ChannelQueue&) = delete;
  ChannelQueue& operator=(const ChannelQueue&) = delete;

  enum class Pushed { kTaken, kClosed };
  Pushed push(Batch batch);
  // No more messages come; whoever waits is woken. False when it was closed already.
  bool close();
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  // Bytes that came and were not handed out.
  std::uint64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }
  std::size_t available() const { return available_.load(std::memory_order_acquire); }
  std::size_t reserved() const { return reserved_.load(std::memory_order_acquire); }

  // At most so many messages from the front, none when there are none. They still count as
  // available: hand_out() tells when one has been given to a consumer.
  std::optional<Batch> take(std::size_t most);
  // One message has been given away: to the waiter it was reserved for, or to somebody else.
  void hand_out(std::uint32_t cost) {
    bytes_.fetch_sub(cost, std::memory_order_relaxed);
    available_.fetch_sub(1, std::memory_order_acq_rel);
  }

  enum class Wait { kWaiting, kTryAgain, kClosed };
  // Queues up, unless there is a message for the taking or the end has come.
  Wait wait(const WaiterPtr& waiter);
  // The waiter's turn came and it has taken its message, or waits no more.
  enum class Left { kUngranted, kGranted };
  Left leave(const WaiterPtr& waiter);
  // It was woken for a message. Not for the end.
  bool granted(const WaiterPtr& waiter) const;

 private:
  void grant(std::vector<WaiterPtr>& woken);  // lock held

  mutable std::mutex mutex_;
  Fifo<Batch> batches_;
  Fifo<WaiterPtr> waiters_;
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<std::size_t> available_{0};
  std::atomic<std::size_t> reserved_{0};  // changes under the lock
  std::atomic<bool> closed_{false};
};

}  // namespace mailbox
