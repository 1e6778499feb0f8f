// TimerHeap: the timers of a loop by time, first set first where times are equal.
//
// Under the GIL. Entries own a reference to their handle. Cancelling is O(1): the newest entry
// leaves at once, others when they reach the top or when half of the heap is cancelled.
#pragma once

#include <cstdint>
#include <vector>

#include "cnode/loop/handle.hpp"

namespace loop {

class TimerHeap {
 public:
  bool empty() const { return heap_.empty(); }
  std::size_t size() const { return heap_.size(); }
  Timer& top() const { return *heap_.front().timer; }
  Timer& at(std::size_t index) const { return *heap_[index].timer; }

  // Takes over a reference.
  void push(Timer& timer) {
    heap_.push_back({timer.when, next_++, &timer});
    rise(heap_.size() - 1);
  }

  // Gives the top's reference away.
  Timer& pop() {
    Timer& first = top();
    if (first.cancelled) --cancelled_;
    take(0);
    return first;
  }

  // Tells that `timer`, which is in the heap, is cancelled. Returns it if the caller gets its
  // reference back.
  Timer* cancelled(Timer& timer) {
    if (timer.index == heap_.size() - 1) {
      take(timer.index);
      return &timer;
    }
    ++cancelled_;
    return nullptr;
  }

  bool wants_cleaning() const { return cancelled_ > kFew && 2 * cancelled_ > heap_.size(); }

  // Takes the cancelled ones out, into `gone` with their references.
  void clean(std::vector<Timer*>& gone) {
    std::size_t kept = 0;
    for (const Entry& entry : heap_) {
      if (entry.timer->cancelled) {
        entry.timer->index = Timer::kNowhere;
        gone.push_back(entry.timer);
      } else {
        heap_[kept++] = entry;
      }
    }
    heap_.resize(kept);
    cancelled_ = 0;
    for (std::size_t i = kept / 2; i-- > 0;) sink(i);
    for (std::size_t i = 0; i < kept; ++i) heap_[i].timer->index = i;
  }

 private:
  static constexpr std::size_t kFew = 100;

  struct Entry {
    double when;
    std::uint64_t order;
    Timer* timer;

    bool operator<(const Entry& other) const {
      return when < other.when || (when == other.when && order < other.order);
    }
  };

  void place(std::size_t index, const Entry& entry) {
    heap_[index] = entry;
    entry.timer->index = index;
  }

  void rise(std::size_t index) {
    const Entry entry = heap_[index];
    while (index > 0) {
      const std::size_t parent = (index - 1) / 2;
      if (!(entry < heap_[parent])) break;
      place(index, heap_[parent]);
      index = parent;
    }
    place(index, entry);
  }

  void sink(std::size_t index) {
    const Entry entry = heap_[index];
    for (;;) {
      std::size_t child = 2 * index + 1;
      if (child >= heap_.size()) break;
      if (child + 1 < heap_.size() && heap_[child + 1] < heap_[child]) ++child;
      if (!(heap_[child] < entry)) break;
      place(index, heap_[child]);
      index = child;
    }
    place(index, entry);
  }

  void take(std::size_t index) {
    heap_[index].timer->index = Timer::kNowhere;
    const Entry last = heap_.back();
    heap_.pop_back();
    if (index == heap_.size()) return;
    place(index, last);
    sink(index);
    rise(index);
  }

  std::vector<Entry> heap_;
  std::uint64_t next_ = 0;
  std::size_t cancelled_ = 0;
};

}  // namespace loop
