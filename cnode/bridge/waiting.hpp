// Waiting: how Python code waits for something the reactor will bring: in a thread, or in a
// coroutine of any asyncio loop.
//
//   reactor ── wake ──▶ ThreadWaiter: the thread that sleeps in wait()
//                  └──▶ TaskWaiter: a callable, in the ErlangEventLoop that waits, else in the
//                  node's
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>

#include "cnode/bridge/async_loop.hpp"
#include "cnode/mailbox/channel_queue.hpp"

namespace bridge {

class ThreadWaiter final : public mailbox::Waiter {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Woken { kWoken, kTimeout, kInterrupted };

  void wake() override;
  void interrupt();
  // Without the GIL. For whoever is to be woken once more, the next wait() starts anew.
  Woken wait(std::optional<Clock::time_point> until);

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool woken_ = false;
  bool interrupted_ = false;
};

// Says that this thread waits with `waiter`, for interrupt_waiting().
class WaitingHere {
 public:
  explicit WaitingHere(const std::shared_ptr<ThreadWaiter>& waiter);
  ~WaitingHere();
  WaitingHere(const WaitingHere&) = delete;
  WaitingHere& operator=(const WaitingHere&) = delete;

 private:
  const unsigned long thread_;
};

// Calls a Python callable on the node's loop thread, which wakes the coroutine on whatever loop it
// is.
class TaskWaiter final : public mailbox::Waiter, public std::enable_shared_from_this<TaskWaiter> {
 public:
  // Made where the wait is: under the GIL, by a coroutine of the loop that runs in this thread.
  TaskWaiter(AsyncLoop& node_loop, PyObject* wake);

  void wake() override;
  // Under the GIL, when nobody waits any more.
  void release();

 private:
  void call();

  AsyncLoop& node_loop_;
  std::shared_ptr<loop::Inbox> inbox_;  // of the loop that waits, if it is one of ours
  PyObject* wake_;                      // owned; under the GIL
};

// Under the GIL: whether a TaskWaiter made by a coroutine of this asyncio loop calls in that loop's
// own thread.
bool wakes_in(PyObject* loop);

// Ends the wait of whoever waits in this thread, so that an exception set in it is raised. Any
// thread.
void interrupt_waiting(unsigned long thread);

// Under the GIL: has the interpreter raise what was set in this thread from outside.
void raise_pending();

// A timeout in seconds as Python gives it; None is none. Throws py::Error.
std::optional<ThreadWaiter::Clock::time_point> deadline_argument(PyObject* timeout);

}  // namespace bridge
