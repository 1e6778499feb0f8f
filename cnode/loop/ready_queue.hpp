// ReadyQueue: what runs in the next turn, in order: handles and the loop's own jobs. A ring that
// only grows.
//
// Under the GIL. Entries own a reference to their object.
#pragma once

#include <cstddef>
#include <memory>

#include "cnode/loop/handle.hpp"

namespace loop {

// Part of a loop that runs in it without a handle: a transport, a socket operation. Returns -1 with
// an exception set only for what has to leave the loop (KeyboardInterrupt, SystemExit).
using Job = int (*)(Loop& loop, PyObject* object);

// A handle if `job` is null.
struct Ready {
  void* what = nullptr;
  Job job = nullptr;

  explicit operator bool() const { return what != nullptr; }
  Handle* handle() const { return job == nullptr ? static_cast<Handle*>(what) : nullptr; }
  PyObject* object() const {
    return job == nullptr ? static_cast<Handle*>(what)->self : static_cast<PyObject*>(what);
  }
};

class ReadyQueue {
 public:
  std::size_t size() const { return tail_ - head_; }
  bool empty() const { return tail_ == head_; }

  // Takes over the reference.
  void push(Ready ready) {
    if (size() == room_) grow();
    ring_[tail_++ & (room_ - 1)] = ready;
  }
  // Gives the reference away.
  Ready pop() { return ring_[head_++ & (room_ - 1)]; }
  // The entry at `place` from the front.
  const Ready& at(std::size_t place) const { return ring_[(head_ + place) & (room_ - 1)]; }

 private:
  void grow() {
    auto larger = std::make_unique<Ready[]>(2 * room_);
    const std::size_t count = size();
    for (std::size_t i = 0; i < count; ++i) larger[i] = at(i);
    ring_ = std::move(larger);
    room_ *= 2;
    head_ = 0;
    tail_ = count;
  }

  std::size_t room_ = 64;  // a power of two
  std::unique_ptr<Ready[]> ring_ = std::make_unique<Ready[]>(64);
  std::size_t head_ = 0;
  std::size_t tail_ = 0;
};

}  // namespace loop
