// Mailbox: hands items from any thread to the thread that consumes them.
//
//   reactor, senders ── push ──▶ [ m1 m2 m3 ] ── take / take_all ──▶ consumer
//
// Bounded in items and bytes; a push that does not fit is refused, and the pusher says so to
// whoever sent. Only the push that finds the mailbox empty asks for a wake-up, so a burst costs
// one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace mailbox {

struct Limits {
  std::size_t items = 100'000;
  std::size_t bytes = std::size_t{256} << 20;
};

enum class Pushed {
  kFirst,  // it was empty: wake the consumer
  kQueued,
  kFull,
  kClosed,
};

template <class Item>
class Mailbox {
 public:
  explicit Mailbox(Limits limits = {}) : limits_(limits) {}
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // A single item over the byte limit still fits an empty mailbox: the message limit has judged it
  // already.
  Pushed push(Item item, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (closed_) return Pushed::kClosed;
    if (items_.size() >= limits_.items || (!items_.empty() && bytes_ + bytes > limits_.bytes)) {
      ++refused_;
      return Pushed::kFull;
    }
    items_.emplace_back(std::move(item), bytes);
    bytes_ += bytes;
    return items_.size() == 1 ? Pushed::kFirst : Pushed::kQueued;
  }

  // For work the node owes itself (freeing, stopping): outside the bounds.
  void push_internal(Item item) {
    const std::lock_guard lock(mutex_);
    items_.emplace_back(std::move(item), 0);
  }

  std::optional<Item> take() {
    const std::lock_guard lock(mutex_);
    if (items_.empty()) return std::nullopt;
    auto [item, bytes] = std::move(items_.front());
    items_.pop_front();
    bytes_ -= bytes;
    return std::move(item);
  }

  // Takes the first item the predicate likes; the others keep their places.
  template <class Predicate>
  std::optional<Item> take_if(Predicate likes) {
    const std::lock_guard lock(mutex_);
    for (auto at = items_.begin(); at != items_.end(); ++at) {
      if (!likes(at->first)) continue;
      Item item = std::move(at->first);
      bytes_ -= at->second;
      items_.erase(at);
      return item;
    }
    return std::nullopt;
  }

  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }

  std::size_t size() const {
    const std::lock_guard lock(mutex_);
    return items_.size();
  }
  bool full() const {
    const std::lock_guard lock(mutex_);
    return items_.size() >= limits_.items || bytes_ >= limits_.bytes;
  }
  std::uint64_t refused() const {
    const std::lock_guard lock(mutex_);
    return refused_;
  }

 private:
  mutable std::mutex mutex_;
  const Limits limits_;
  std::deque<std::pair<Item, std::size_t>> items_;
  std::size_t bytes_ = 0;
  std::uint64_t refused_ = 0;
  bool closed_ = false;
};

}  // namespace mailbox
