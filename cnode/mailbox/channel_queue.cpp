#include "cnode/mailbox/channel_queue.hpp"

#include <algorithm>

namespace mailbox {
namespace {

void wake_all(const std::vector<WaiterPtr>& waiters) {
  for (const auto& waiter : waiters) waiter->wake();
}

}  // namespace

ChannelQueue::Pushed ChannelQueue::push(Batch batch) {
  std::vector<WaiterPtr> woken;
  {
    const std::lock_guard lock(mutex_);
    if (closed()) return Pushed::kClosed;
    std::uint64_t bytes = 0;
    for (const Slice& slice : batch.slices) bytes += slice.cost;
    bytes_.fetch_add(bytes, std::memory_order_relaxed);
    available_.fetch_add(batch.size(), std::memory_order_acq_rel);
    if (batch.size() > 0) batches_.push(std::move(batch));
    grant(woken);
  }
  wake_all(woken);
  return Pushed::kTaken;
}

void ChannelQueue::grant(std::vector<WaiterPtr>& woken) {
  while (!waiters_.empty() && available() > reserved()) {
    WaiterPtr waiter = waiters_.pop();
    waiter->state_ = Waiter::State::kGranted;
    reserved_.fetch_add(1, std::memory_order_acq_rel);
    woken.push_back(std::move(waiter));
  }
}

bool ChannelQueue::close() {
  std::vector<WaiterPtr> woken;
  {
    const std::lock_guard lock(mutex_);
    if (closed_.exchange(true, std::memory_order_acq_rel)) return false;
    while (!waiters_.empty()) {
      woken.push_back(waiters_.pop());
      woken.back()->state_ = Waiter::State::kIdle;
    }
  }
  wake_all(woken);
  return true;
}

std::optional<Batch> ChannelQueue::take(std::size_t most) {
  const std::lock_guard lock(mutex_);
  if (batches_.empty()) return std::nullopt;
  Batch& front = batches_.front();
  if (front.size() <= most) return batches_.pop();
  Batch part;
  part.bytes = front.bytes;
  part.sender = front.sender;
  const auto begin = front.slices.begin() + static_cast<std::ptrdiff_t>(front.next);
  part.slices.assign(begin, begin + static_cast<std::ptrdiff_t>(most));
  front.next += most;
  return part;
}

ChannelQueue::Wait ChannelQueue::wait(const WaiterPtr& waiter) {
  const std::lock_guard lock(mutex_);
  if (available() > reserved()) return Wait::kTryAgain;
  if (closed()) return Wait::kClosed;
  waiter->state_ = Waiter::State::kWaiting;
  waiters_.push(waiter);
  return Wait::kWaiting;
}

ChannelQueue::Left ChannelQueue::leave(const WaiterPtr& waiter) {
  std::vector<WaiterPtr> woken;
  Left how = Left::kUngranted;
  {
    const std::lock_guard lock(mutex_);
    if (waiter->state_ == Waiter::State::kGranted) {
      how = Left::kGranted;
      reserved_.fetch_sub(1, std::memory_order_acq_rel);
      grant(woken);  // if it leaves without its message, that is the next one's
    } else if (waiter->state_ == Waiter::State::kWaiting) {
      waiters_.remove_if([&](const WaiterPtr& other) { return other == waiter; });
    }
    waiter->state_ = Waiter::State::kIdle;
  }
  wake_all(woken);
  return how;
}

bool ChannelQueue::granted(const WaiterPtr& waiter) const {
  const std::lock_guard lock(mutex_);
  return waiter->state_ == Waiter::State::kGranted;
}

}  // namespace mailbox
