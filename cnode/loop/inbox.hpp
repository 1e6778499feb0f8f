// Inbox: work that other threads hand to a loop without the GIL.
//
//   I/O threads ── post ──▶ [ w1 w2 w3 ] ── take ──▶ the loop, once a turn, under the GIL
//
// Only a post that finds the loop parked wakes it, so a burst costs one wake-up, and none while the
// loop works. Its bound is its users': each of them has a bounded queue of its own behind what it
// posts.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <vector>

namespace loop {

class Poller;

class Inbox {
 public:
  using Work = std::function<void()>;

  explicit Inbox(Poller& poller) : poller_(&poller) {}

  // Any thread, with or without the GIL; false once the loop is closed: the work is dropped.
  bool post(Work work);

  // The rest is the loop's own.
  void close();
  void take(std::vector<Work>& into);
  bool empty() const { return size_.load(std::memory_order_seq_cst) == 0; }  // in order with park()

  // Says that the loop is about to wait. Whoever has something for it now must wake it.
  void park() { parked_.store(true, std::memory_order_seq_cst); }
  void unpark() { parked_.store(false, std::memory_order_relaxed); }
  // Wakes the loop if it waits.
  void knock();

 private:
  std::mutex mutex_;  // guards what follows, and that the poller is not gone while it is woken
  Poller* poller_;
  std::vector<Work> work_;
  std::atomic<std::size_t> size_{0};
  std::atomic<bool> parked_{true};  // a loop that does not run may be driven from outside
};

}  // namespace loop
