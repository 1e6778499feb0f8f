// WorkerPool: the threads that run synchronous Python code, and the one bounded queue they share.
//
//   Router ── push ──▶ [ c1 c2 c3 … ] ── next ──▶ worker 1..N, one call each
//
// One queue and not one per worker: a call waits only while every worker is busy, never behind a
// slow one. One worker at a time runs through a burst of quick calls under a single hold of the
// GIL; the sentinel on the reactor sees when that worker is stuck in a slow call and wakes as many
// others as there is work, or, when all are busy, asks the loop thread to pick out the calls it can
// run.
//
// Waiting: a worker whose call asks Erlang something counts as absent until it is answered, and
// another takes its place: an idle one, or one more thread up to `max_workers`. So calls that call
// back to any depth always find somebody to serve them. The last one that is not waiting may not
// wait: what it wanted to ask is refused. Threads beyond `workers` end when they had nothing to do
// for a while.
//
// Interrupting: a cancelled call that runs gets an exception raised in its thread at the next
// bytecode. One that has not ended after the grace period (it sits in C code) is reported and its
// worker replaced; should it ever come back, its thread ends.
#pragma once

#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

#include "cnode/bridge/call.hpp"
#include "cnode/bridge/call_runner.hpp"
#include "cnode/bridge/histogram.hpp"
#include "cnode/mailbox/mailbox.hpp"
#include "cnode/py/python.hpp"

namespace bridge {

class WorkerPool final : public CallRunner {
 public:
  struct Options {
    std::size_t workers = 8;
    std::size_t max_workers = 1000;  // with those that wait for an answer from Erlang
    mailbox::Limits queue;
    std::chrono::milliseconds grace{5'000};
    std::chrono::milliseconds surplus_idle{5'000};  // then a worker that is not needed ends
  };
  struct Hooks {
    std::function<void(const CallPtr&)> run;         // on a worker, under the GIL; may not throw
    std::function<void()> flush;                     // any thread, without the GIL
    std::function<bool()> has_unflushed;             // reactor
    std::function<void()> look_for_async;            // reactor: every worker is busy and calls wait
    std::function<bool(const CallPtr&)> loop_takes;  // reactor: whether it went to the loop thread
    std::function<void(unsigned long thread)> interrupted;  // an exception was set in that thread
    std::function<PyObject*()> interruption;  // under the GIL: the exception class, borrowed
  };

  WorkerPool(asio::io_context& reactor, Options options, Hooks hooks);
  ~WorkerPool() override;
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  void start();
  void stop();  // without the GIL: lets running calls end, up to the grace period

  // Reactor.
  bool push(CallPtr call) override;
  std::size_t push_all(std::vector<CallPtr>& calls) override;
  bool full() const override;
  void cancel(const CallPtr& call) override;  // interrupts it if it runs on a worker
  // What no worker has taken yet, in order, and the pool has it no more.
  std::vector<CallPtr> take_waiting();

  // Any thread: work the node owes itself, ahead of the queue and outside its bounds.
  void push_internal(CallPtr call) override;
  // Likewise, but in its turn.
  void push_job(CallPtr call);

  // Worker, under the GIL: the call's own code is over; from here on it cannot be interrupted.
  static void leave_user_code();
  // Worker: the call is over, and this is the time. Saves the pool a look at the clock.
  static void over(CallMetrics::Clock::time_point now);

  // The call this worker runs; nullptr in other threads and between calls.
  static const Call* current_call();

  // Around a wait for an answer from Erlang, without the GIL. In a thread that is no worker it does
  // nothing; refused() says that this worker may not wait.
  class Waiting {
   public:
    Waiting();
    ~Waiting();
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;
    bool refused() const { return refused_; }

   private:
    bool waiting_ = false;
    bool refused_ = false;
  };

  // Loop thread: takes the next waiting call that `wanted` likes; each call is shown once, and few
  // at a time.
  CallPtr take_for_loop(const std::function<bool(const CallPtr&)>& wanted);

  std::size_t waiting() const override;
  std::size_t busy() const override;
  std::size_t workers() const override { return options_.workers; }
  std::size_t threads() const override;
  std::size_t blocked() const override;
  std::uint64_t replaced() const override { return replaced_.load(std::memory_order_relaxed); }
  std::uint64_t refused() const override { return refused_.load(std::memory_order_relaxed); }
  std::uint64_t completed() const override { return popped_.load(std::memory_order_relaxed); }
  const Histogram& gil_wait() const { return gil_wait_; }  // of workers, once a batch

 private:
  using Clock = std::chrono::steady_clock;
  struct Worker {
    std::size_t number = 0;
    std::thread thread;
    std::condition_variable wake;
    bool awake = false;
    unsigned long ident = 0;
    CallPtr current;           // while user code runs
    bool in_call = false;      // from taking a call to asking for the next
    bool interrupted = false;  // an exception was set in its thread
    bool waiting = false;      // for an answer from Erlang
    bool retired = false;      // ends because there are more than needed
    bool abandoned = false;
    bool ended = false;
    Clock::time_point interrupt_at{};  // when it was asked to end
  };

  Worker& add_worker();     // lock held
  Worker* add_if_needed();  // lock held; nullptr where no more are needed or to be had
  void drop_ended();        // lock held
  bool begin_waiting(Worker& worker);
  void end_waiting(Worker& worker);
  bool surplus() const { return live_ - waiting_ > options_.workers; }  // lock held
  void run(Worker& worker);
  CallPtr next(Worker& worker, Clock::time_point now);
  bool park(Worker& worker);
  Clock::time_point take_gil(PyThreadState* thread);  // the time after it
  void interrupter();
  bool has_room(std::size_t bytes) const;  // lock held
  Worker* wake_one();             // lock held; the caller notifies it once the lock is released
  Worker* worker_for_new_call();  // likewise
  bool needs_watching(const Worker* woken) const;  // lock held
  void after_push(Worker* woken, bool watch);
  void arm_sentinel();
  void sentinel();
  void look_for_wedged();

  asio::io_context& reactor_;
  const Options options_;
  const Hooks hooks_;

  mutable std::mutex mutex_;
  std::deque<CallPtr> queue_;
  std::size_t queue_bytes_ = 0;
  std::size_t looked_ = 0;  // so many at the front were shown to the loop thread and left
  std::list<Worker> workers_;
  std::size_t numbered_ = 0;
  std::vector<Worker*> idle_;
  std::size_t active_ = 0;
  std::size_t live_ = 0;     // neither ended nor abandoned
  std::size_t waiting_ = 0;  // of those, for an answer from Erlang
  bool stopping_ = false;    // no new calls
  bool stopped_ = false;     // no interrupting either
  Clock::time_point last_taken_{};
  std::vector<CallPtr> interrupts_;
  std::condition_variable interrupt_wake_;
  std::thread interrupter_;

  std::atomic<std::uint64_t> popped_{0};
  std::atomic<std::uint64_t> replaced_{0};
  std::atomic<std::uint64_t> refused_{0};
  Histogram gil_wait_;

  // Reactor thread.
  asio::steady_timer sentinel_;
  asio::steady_timer wedged_;
  bool sentinel_armed_ = false;
  bool wedged_armed_ = false;
  std::uint64_t popped_before_ = 0;
  int stuck_looks_ = 0;  // the sentinel's, in a row, that found every worker busy and nothing taken
};

}  // namespace bridge
