// MemoryBudget: how many bytes of requests may be in flight, from all peers and from each.
//
//   one peer ──▶ its budget ──▶ the whole: a limit, and what memory is left
//
// admits() says whether more may come; a Charge counts what came until it is destroyed. What is
// left is asked of the outside, seldom, and only when much is in flight.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

namespace base {

class MemoryBudget {
 public:
  using Clock = std::chrono::steady_clock;
  // Bytes that the process may still take; nothing where nobody limits it.
  using Left = std::function<std::optional<std::size_t>()>;

  // In flight however little memory is left, so that small calls are served.
  static constexpr std::size_t kAlways = std::size_t{1} << 20;
  static constexpr std::chrono::milliseconds kLookEvery{50};

  explicit MemoryBudget(std::size_t limit, Left left = {})
      : limit_(limit), left_(std::move(left)) {}
  MemoryBudget(std::size_t limit, std::shared_ptr<MemoryBudget> whole)
      : limit_(limit), whole_(std::move(whole)) {}
  MemoryBudget(const MemoryBudget&) = delete;
  MemoryBudget& operator=(const MemoryBudget&) = delete;

  // Reactor. `own`: what of the bytes in flight belongs to the same message. One peer's message may
  // exceed the peer's limit if it is alone.
  bool admits(std::size_t bytes, std::size_t own = 0) {
    const std::size_t in_flight = used();
    if (whole_) {
      if (in_flight > own && bytes > limit_ - std::min(limit_, in_flight)) return false;
      return whole_->admits(bytes, own);
    }
    if (in_flight + bytes > limit_) return false;
    if (in_flight + bytes <= kAlways || !left_) return true;
    look(in_flight);
    return !left_then_ || bytes + (in_flight - std::min(in_flight, used_then_)) <= *left_then_;
  }

  // Any thread.
  std::size_t used() const { return used_.load(std::memory_order_relaxed); }
  std::size_t limit() const { return limit_; }

 private:
  friend class Charge;

  void look(std::size_t in_flight) {
    const auto now = Clock::now();
    if (now < look_at_) return;
    look_at_ = now + kLookEvery;
    left_then_ = left_();
    used_then_ = in_flight;
  }
  void add(std::size_t bytes) {
    used_.fetch_add(bytes, std::memory_order_relaxed);
    if (whole_) whole_->add(bytes);
  }
  void subtract(std::size_t bytes) {
    used_.fetch_sub(bytes, std::memory_order_relaxed);
    if (whole_) whole_->subtract(bytes);
  }

  const std::size_t limit_;
  const Left left_;
  const std::shared_ptr<MemoryBudget> whole_;
  std::atomic<std::size_t> used_{0};
  // Reactor.
  Clock::time_point look_at_{};
  std::optional<std::size_t> left_then_;
  std::size_t used_then_ = 0;
};

// Bytes counted while it lives. Without a budget it counts nothing.
class Charge {
 public:
  Charge() = default;
  explicit Charge(std::shared_ptr<MemoryBudget> budget, std::size_t bytes = 0)
      : budget_(std::move(budget)) {
    grow(bytes);
  }
  Charge(Charge&& other) noexcept
      : budget_(std::exchange(other.budget_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Charge& operator=(Charge&& other) noexcept {
    std::swap(budget_, other.budget_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  Charge(const Charge&) = delete;
  Charge& operator=(const Charge&) = delete;
  ~Charge() {
    if (budget_) budget_->subtract(bytes_);
  }

  void grow(std::size_t bytes) {
    if (!budget_) return;
    bytes_ += bytes;
    budget_->add(bytes);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<MemoryBudget> budget_;
  std::size_t bytes_ = 0;
};

}  // namespace base
