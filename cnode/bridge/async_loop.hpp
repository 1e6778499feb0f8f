// AsyncLoop: the thread with the asyncio loop, where coroutines of all calls run.
//
//   workers (coroutines), reactor (calls of known coroutine functions, cancellations)
//   ── inbox ──▶ the loop's inbox ──▶ tasks ──▶ Invoker::finish
//
// Never held up by workers: calls of functions that are known to be coroutine functions come here
// straight, and when all workers are busy it takes the others out of their queue itself.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cnode/bridge/call.hpp"
#include "cnode/loop/inbox.hpp"
#include "cnode/py/ref.hpp"

namespace loop {
class Loop;
}

namespace bridge {

class AsyncLoop {
 public:
  struct Hooks {
    std::function<void(const Call&, PyObject* value, PyObject* exception)> finish;  // under the GIL
    std::function<void()> look_for_async;                                           // under the GIL
    std::function<void(const CallPtr&)> run;  // under the GIL: a call that was handed over
    std::function<void()> flush;              // without the GIL
    // Under the GIL: for whom the call's coroutine works, and the context variable that says so.
    std::function<py::Ref(Call&)> served;
    PyObject* served_variable = nullptr;
    // Under the GIL, around the making of a task: what leave_trace gets is what enter_trace said.
    std::function<py::Ref(const Call&)> enter_trace;
    std::function<void(const py::Ref&)> leave_trace;
  };

  explicit AsyncLoop(Hooks hooks) : hooks_(std::move(hooks)) {}
  ~AsyncLoop() { stop(); }
  AsyncLoop(const AsyncLoop&) = delete;
  AsyncLoop& operator=(const AsyncLoop&) = delete;

  void start();  // without the GIL; returns when the loop runs. Throws std::runtime_error when it
                 // cannot.
  void stop();   // without the GIL; cancels what still runs

  void start_task(const CallPtr& call, py::Ref coroutine);  // under the GIL
  void hand_over(CallPtr call);                             // any thread: runs it here
  void cancel(const CallPtr& call);                         // any thread
  void look_for_async();                                    // any thread
  void post(std::function<void()> work);  // any thread: runs it there, under the GIL

  // Of calls: those that run, and those handed over that do not yet.
  std::size_t tasks() const { return tasks_.load(std::memory_order_relaxed); }
  PyObject* loop() const { return loop_; }  // borrowed; under the GIL
  bool is_loop_thread() const { return std::this_thread::get_id() == thread_.get_id(); }

 private:
  struct Item {
    enum class What { kStart, kRun, kCancel, kLook, kWork, kStop };
    What what = What::kLook;
    CallPtr call;
    PyObject* coroutine = nullptr;  // owned; made and taken under the GIL
    std::function<void()> work;
  };

  void run();
  void push(Item item);
  void drop(Item& item);  // under the GIL where it has a coroutine
  void end_tasks(PyObject* asyncio);
  void drain();
  void begin(const CallPtr& call, py::Ref coroutine);
  py::Ref make_task(Call& call, const py::Ref& coroutine);
  void task_done(Call& call, PyObject* task);
  void flush_soon();

  static PyObject* on_done(PyObject* self, PyObject* task);
  static int on_flush(loop::Loop& loop, PyObject* self);
  static PyMethodDef kDone;

  const Hooks hooks_;
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable started_;
  enum class State { kIdle, kStarting, kRunning, kFailed, kStopped } state_ = State::kIdle;
  std::string failure_;
  std::vector<Item> inbox_;
  std::shared_ptr<loop::Inbox> loop_inbox_;  // of the loop, while it runs
  std::atomic<std::size_t> tasks_{0};

  // Loop thread, under the GIL.
  PyObject* loop_ = nullptr;
  loop::Loop* native_ = nullptr;  // while it runs
  py::Ref create_task_, capsule_;
  bool flush_scheduled_ = false;
};

}  // namespace bridge
