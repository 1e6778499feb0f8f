#include "cnode/loop/inbox.hpp"

#include <utility>

#include "cnode/loop/poller.hpp"

namespace loop {

bool Inbox::post(Work work) {
  const std::lock_guard lock(mutex_);
  if (poller_ == nullptr) return false;
  work_.push_back(std::move(work));
  size_.store(work_.size(), std::memory_order_seq_cst);
  if (parked_.exchange(false, std::memory_order_seq_cst)) poller_->wake();
  return true;
}

void Inbox::close() {
  std::vector<Work> dropped;
  const std::lock_guard lock(mutex_);
  poller_ = nullptr;
  dropped.swap(work_);
  size_.store(0, std::memory_order_release);
}

void Inbox::take(std::vector<Work>& into) {
  const std::lock_guard lock(mutex_);
  into.swap(work_);
  size_.store(0, std::memory_order_release);
}

void Inbox::knock() {
  if (!parked_.exchange(false, std::memory_order_seq_cst)) return;
  const std::lock_guard lock(mutex_);
  if (poller_ != nullptr) poller_->wake();
}

}  // namespace loop
